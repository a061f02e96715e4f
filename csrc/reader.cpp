#include "reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

namespace gf {
namespace {

constexpr int64_t kReadBytes = 8 << 20;     // one pread: a reader that is closed waits for no more than this
constexpr int64_t kScratchBytes = 1 << 20;  // strided rows on their way: stays in the second-level cache

FileError file_error(const RowFile& file, const std::string& what) {
  return FileError(file.path + ": " + what + ": " + std::strerror(errno));
}

// The byte after the last row.
int64_t end_of(const RowFile& file) {
  int64_t bytes = 0, end = 0;
  const bool too_large =
      __builtin_mul_overflow(file.rows, file.stride, &bytes) || __builtin_add_overflow(bytes, file.offset, &end);
  if (file.offset < 0 || file.rows < 0 || too_large) {
    throw std::invalid_argument(file.path + ": expected rows within 2^63 bytes, got " + std::to_string(file.rows) +
                                " rows of " + std::to_string(file.stride) + " bytes at offset " +
                                std::to_string(file.offset));
  }
  return end;
}

}  // namespace

RowFiles::RowFiles(std::vector<RowFile> files, int64_t row_bytes, std::optional<int32_t> dim_word, bool sequential)
    : files_(std::move(files)),
      row_bytes_(row_bytes),
      dim_word_(dim_word),
      lead_(dim_word ? sizeof(int32_t) : 0),
      sequential_(sequential) {
  if (row_bytes_ < 1) throw std::invalid_argument("row_bytes: expected at least 1, got " + std::to_string(row_bytes_));
  int64_t rows = 0;
  for (const RowFile& file : files_) {
    if (file.stride - lead_ < row_bytes_) {
      throw std::invalid_argument(file.path + ": expected a stride of at least " + std::to_string(lead_ + row_bytes_) +
                                  " bytes, got " + std::to_string(file.stride));
    }
    end_of(file);
    if (__builtin_add_overflow(rows, file.rows, &rows)) throw std::invalid_argument("files: more than 2^63 rows");
    ends_.push_back(rows);
  }
}

RowFiles::~RowFiles() {
  if (fd_ >= 0) ::close(fd_);
}

bool RowFiles::read(int64_t first, int64_t count, std::byte* out, const std::atomic<bool>* cancelled) {
  size_t index = std::upper_bound(ends_.begin(), ends_.end(), first) - ends_.begin();
  const int64_t at_once = std::max<int64_t>(1, kReadBytes / row_bytes_);
  while (count > 0) {
    if (cancelled && *cancelled) return false;
    while (first == ends_[index]) ++index;  // files of no rows, too
    const RowFile& file = files_[index];
    const int64_t row = first - (ends_[index] - file.rows);
    const int64_t n = std::min({count, file.rows - row, at_once});
    open(index);
    if (file.stride == row_bytes_) {
      read_packed(file, row, n, out);
    } else {
      read_strided(file, row, n, out);
    }
    first += n, count -= n, out += n * row_bytes_;
  }
  return true;
}

void RowFiles::open(size_t file) {
  if (fd_ >= 0 && opened_ == file) return;
  if (fd_ >= 0) ::close(fd_);
  do {
    fd_ = ::open(files_[file].path.c_str(), O_RDONLY | O_CLOEXEC);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0) throw file_error(files_[file], "cannot open");
  opened_ = file;
#ifdef POSIX_FADV_SEQUENTIAL
  if (sequential_) posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);  // where it is refused, reading is only slower
#endif
}

void RowFiles::read_packed(const RowFile& file, int64_t row, int64_t count, std::byte* out) const {
  read_bytes(file, file.offset + row * file.stride, count * row_bytes_, out);
}

void RowFiles::read_strided(const RowFile& file, int64_t row, int64_t count, std::byte* out) {
  const int64_t at_once = std::max<int64_t>(1, kScratchBytes / file.stride);
  scratch_.resize(std::min(count, at_once) * file.stride);
  while (count > 0) {
    const int64_t n = std::min(count, at_once);
    read_bytes(file, file.offset + row * file.stride, (n - 1) * file.stride + lead_ + row_bytes_, scratch_.data());
    for (int64_t i = 0; i < n; ++i) {
      const std::byte* source = scratch_.data() + i * file.stride;
      if (dim_word_) {
        int32_t word;
        std::memcpy(&word, source, sizeof word);
        if (word != *dim_word_) {
          throw RowError(file.path + ": row " + std::to_string(row + i) + ": expected dim " +
                         std::to_string(*dim_word_) + " as in row 0, got " + std::to_string(word));
        }
      }
      std::memcpy(out, source + lead_, row_bytes_);
      out += row_bytes_;
    }
    row += n, count -= n;
  }
}

void RowFiles::read_bytes(const RowFile& file, int64_t offset, int64_t bytes, std::byte* out) const {
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, out, std::min(bytes, kReadBytes), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw file_error(file, "cannot read " + std::to_string(bytes) + " bytes at " + std::to_string(offset));
    if (n == 0) {
      struct stat now;
      const int64_t size = ::fstat(fd_, &now) == 0 ? now.st_size : -1;
      throw FileError(file.path + ": truncated since it was opened: expected at least " + std::to_string(end_of(file)) +
                      " bytes, got " + std::to_string(size) + " (reading " + std::to_string(bytes) + " bytes at " +
                      std::to_string(offset) + ")");
    }
    offset += n, bytes -= n, out += n;
  }
}

BlockReader::BlockReader(RowFiles& files, std::array<std::byte*, 2> buffers, int64_t block_rows, int64_t start,
                         int64_t stop)
    : files_(files), buffers_(buffers), block_rows_(block_rows), start_(start), stop_(stop) {
  if (block_rows_ < 1) throw std::invalid_argument("buffers: expected room for at least one row");
  if (start_ < 0 || stop_ < start_ || stop_ > files_.rows()) {
    throw std::invalid_argument("start, stop: expected 0 <= start <= stop <= " + std::to_string(files_.rows()) +
                                ", got " + std::to_string(start_) + " and " + std::to_string(stop_));
  }
  thread_ = std::thread(&BlockReader::run, this);
}

void BlockReader::run() {
  std::exception_ptr failure;
  try {
    int64_t block = 0;
    for (int64_t first = start_; first < stop_; ++block) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return block < returned_ + 2 || cancelled_; });
      }
      const int64_t n = std::min(block_rows_, stop_ - first);
      if (!files_.read(first, n, buffers_[block % 2], &cancelled_)) break;
      std::lock_guard lock(mutex_);
      read_ = block + 1;
      changed_.notify_all();
      first += n;
    }
  } catch (...) {
    failure = std::current_exception();
  }
  std::lock_guard lock(mutex_);
  finished_ = true;
  failure_ = failure;
  changed_.notify_all();
}

void BlockReader::give_back() {
  std::lock_guard lock(mutex_);
  returned_ = given_;
  changed_.notify_all();
}

bool BlockReader::ready(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, patience, [&] { return settled(); });
}

std::optional<BlockReader::Block> BlockReader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return settled(); });
  if (cancelled_) return std::nullopt;
  if (read_ == given_) {
    if (failure_) std::rethrow_exception(failure_);
    return std::nullopt;
  }
  const int64_t block = given_++;
  const int64_t first = start_ + block * block_rows_;
  return Block{block % 2, first, std::min(block_rows_, stop_ - first)};
}

void BlockReader::close() {
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

}  // namespace gf
