"""csrc/math/row_statistics.h by itself: parts of a row, in frames of their own, merge to the whole row's loss."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HEADERS = Path(__file__).parents[1] / "csrc"
# Reads T, the number of parts, and per part its length and its logits (new, old); merges and prints KL and log-sum-exp.
PROGRAM = """
#include "math/row_statistics.h"
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <vector>
using namespace graceful_fast;
int main() {
  double temperature; int parts;
  std::cin >> temperature >> parts;
  Softmax softmax; Divergence divergence;
  for (int p = 0; p < parts; ++p) {
    int n; std::cin >> n;
    std::vector<double> s(n), t(n);
    for (int j = 0; j < n; ++j) std::cin >> s[j] >> t[j];
    Softmax part; Divergence of_part;
    part.frame = *std::max_element(s.begin(), s.end());
    of_part.new_frame = float(part.frame - 0.3 * temperature);
    of_part.old_frame = *std::max_element(t.begin(), t.end());
    for (int j = 0; j < n; ++j) {
      (s[j] == part.frame ? part.ones : part.rest) += std::exp(s[j] - part.frame);
      const double u = (t[j] - of_part.old_frame) / temperature, d = (s[j] - of_part.new_frame) / temperature - u;
      const double w = std::exp(u);
      of_part.k += w, of_part.m += w * d, of_part.x += w * (std::expm1(d) - d), of_part.v += w * std::exp(d);
    }
    softmax.merge(part);
    divergence.merge(of_part, temperature);
  }
  std::printf("%.17g %.17g\\n", divergence.kl(), softmax.frame + std::log1p(softmax.excess()));
}
"""


@pytest.fixture(scope="module")
def merge(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("merge")
    (folder / "merge.cpp").write_text(PROGRAM)
    command = [compiler, "-std=c++17", "-O1", f"-I{HEADERS}", str(folder / "merge.cpp"), "-o", str(folder / "merge")]
    subprocess.run(command, check=True)

    def run(new, old, temperature, cuts):
        parts = [x for x in zip(new.tensor_split(cuts), old.tensor_split(cuts), strict=True) if len(x[0])]
        words = [repr(temperature), str(len(parts))]
        for s, t in parts:
            words.append(str(len(s)))
            words += [repr(x) for pair in zip(s.tolist(), t.tolist(), strict=True) for x in pair]
        out = subprocess.run([folder / "merge"], input=" ".join(words), capture_output=True, text=True, check=True)
        return tuple(float(x) for x in out.stdout.split())

    return run


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0, 100.0])
@pytest.mark.parametrize("cuts", [[], [1], [3, 10, 11], [50]])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_parts_of_a_row_merge_to_the_whole(merge, temperature, cuts, spread):
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(60, generator=generator, dtype=torch.float64) * spread
    new = old + torch.randn(60, generator=generator, dtype=torch.float64) * spread / 2
    kl, log_sum = merge(new, old, temperature, cuts)
    log_p, log_q = (old / temperature).log_softmax(0), (new / temperature).log_softmax(0)
    expected = (log_p.exp() * (log_p - log_q)).sum().item()
    assert abs(kl - expected) <= 1e-9 * expected + 1e-14
    assert abs(log_sum - new.logsumexp(0).item()) <= 1e-12 * abs(log_sum) + 1e-12
