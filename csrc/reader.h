// Rows at fixed offsets in files, read by pread into the caller's memory. Never mapped: a mapped page that was read
// stays in the resident set, and a gallery is larger than memory. No torch, no Python here.
#pragma once
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace gf {

struct RowFile {
  std::string path;
  int64_t offset;  // of the first row
  int64_t stride;  // bytes from a row to the next
  int64_t rows;
};

// The file cannot be read: missing, unreadable, shorter than its rows.
struct FileError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A row that the format forbids.
struct RowError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Several files as one sequence of rows. One file is open at a time: shards may be more than a process may open.
class RowFiles {
 public:
  // dim_word: rows begin with an int32 of this value (.fvecs, .bvecs), which is checked and left out. sequential:
  // advise the system to read far ahead; of rows here and there that would fetch what nobody wants.
  RowFiles(std::vector<RowFile> files, int64_t row_bytes, std::optional<int32_t> dim_word, bool sequential);
  RowFiles(const RowFiles&) = delete;
  ~RowFiles();

  int64_t rows() const { return ends_.empty() ? 0 : ends_.back(); }
  int64_t row_bytes() const { return row_bytes_; }

  // Rows [first, first + count), packed, into `out`; false if `*cancelled` was set meanwhile.
  bool read(int64_t first, int64_t count, std::byte* out, const std::atomic<bool>* cancelled = nullptr);

 private:
  void open(size_t file);
  void read_packed(const RowFile& file, int64_t row, int64_t count, std::byte* out) const;
  void read_strided(const RowFile& file, int64_t row, int64_t count, std::byte* out);
  void read_bytes(const RowFile& file, int64_t offset, int64_t bytes, std::byte* out) const;

  std::vector<RowFile> files_;
  std::vector<int64_t> ends_;  // rows of all files up to and with this one
  int64_t row_bytes_;
  std::optional<int32_t> dim_word_;
  int64_t lead_;  // bytes of a row before its values
  bool sequential_;
  std::vector<std::byte> scratch_;
  size_t opened_ = 0;  // the file that fd_ belongs to
  int fd_ = -1;
};

// Blocks of rows, read one ahead by a thread of its own into two buffers in turn.
class BlockReader {
 public:
  struct Block {
    int64_t slot;  // which of the two buffers
    int64_t first;
    int64_t rows;
  };

  // `files` and the buffers (block_rows rows each) outlive the reader.
  BlockReader(RowFiles& files, std::array<std::byte*, 2> buffers, int64_t block_rows, int64_t start, int64_t stop);
  ~BlockReader() { close(); }

  // Gives the last block's buffer back to the thread.
  void give_back();
  // Whether next() has its answer, waiting up to `patience` for it.
  bool ready(std::chrono::milliseconds patience);
  // The next block, or none at the end; throws what the thread met, after the blocks before it.
  std::optional<Block> next();
  // Stops and joins the thread. The end has come for next(), too.
  void close();

 private:
  void run();
  bool settled() const { return read_ > given_ || finished_; }

  RowFiles& files_;
  std::array<std::byte*, 2> buffers_;
  int64_t block_rows_, start_, stop_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Blocks counted from 0: read by the thread, given to the caller, given back by it; read_ <= returned_ + 2.
  int64_t read_ = 0, given_ = 0, returned_ = 0;
  bool finished_ = false;
  std::exception_ptr failure_;
  std::atomic<bool> cancelled_ = false;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace gf
