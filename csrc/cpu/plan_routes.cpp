// plan_routes on the CPU: mask -> pairs sorted by sub-network (routes) and by sample (order), by counting.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "parallel.h"

namespace {

using namespace artsy;

Tensor indexes(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

// Calls visit(s) for every set column of a row. Masks are sparse: eight silent sub-networks are passed over at once.
template <class Visit>
inline void for_each_functional(const uint8_t* row, int64_t S, Visit visit) {
  static_assert(std::endian::native == std::endian::little, "the lowest byte of a word is its first column");
  int64_t s = 0;
  for (; s + 8 <= S; s += 8) {
    uint64_t word;
    std::memcpy(&word, row + s, sizeof(word));
    while (word) {
      const int byte = std::countr_zero(word) / 8;
      visit(s + byte);
      word &= ~(uint64_t{0xff} << (8 * byte));
    }
  }
  for (; s < S; ++s)
    if (row[s]) visit(s);
}

// Neighbouring samples, which one thread plans.
struct Chunk {
  int64_t begin, end;
  std::vector<int64_t> functional;  // the sub-networks of all pairs by sample: the mask is read once
  std::vector<int64_t> next;        // of each sub-network: first the count, then where its next pair goes
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> plan_routes_cpu(const Tensor& given,
                                                                           std::optional<int64_t> capacity) {
  Check check("plan_routes");
  check.tensor("mask", given, {"BS"}, {ScalarType::Bool});
  check.require(capacity.value_or(0) >= 0, "capacity must be >= 0, got " + std::to_string(capacity.value_or(0)));

  const Tensor contiguous = made_contiguous(given);
  const int64_t B = check.size('B'), S = check.size('S');
  const auto* mask = reinterpret_cast<const uint8_t*>(contiguous.const_data_ptr());

  const Tensor offsets = indexes(S + 1), sample_offsets = indexes(B + 1);
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  auto* sample_offset = sample_offsets.mutable_data_ptr<int64_t>();

  const int64_t workers = workers_for(static_cast<double>(B) * static_cast<double>(S) / 4);
  std::vector<Chunk> chunks(std::clamp<int64_t>(B, 1, workers));
  const auto count = static_cast<int64_t>(chunks.size());
  for_each_task(count, workers, [&](int64_t, int64_t k) {
    Chunk& chunk = chunks[k];
    chunk.begin = k * B / count, chunk.end = (k + 1) * B / count;
    chunk.next.assign(S, 0);
    for (int64_t b = chunk.begin; b < chunk.end; ++b) {
      const size_t before = chunk.functional.size();
      for_each_functional(mask + b * S, S, [&](int64_t s) {
        ++chunk.next[s];
        chunk.functional.push_back(s);
      });
      sample_offset[b + 1] = static_cast<int64_t>(chunk.functional.size() - before);
    }
  });

  sample_offset[0] = 0;
  for (int64_t b = 0; b < B; ++b) sample_offset[b + 1] += sample_offset[b];
  offset[0] = 0;
  for (int64_t s = 0; s < S; ++s) {
    offset[s + 1] = offset[s];
    for (Chunk& chunk : chunks) {
      const int64_t pairs = chunk.next[s];
      chunk.next[s] = offset[s + 1];
      offset[s + 1] += pairs;
    }
  }
  const int64_t used = offset[S];
  const int64_t P = capacity.value_or(used);
  check.require(used <= P, "capacity must be at least the number of functional pairs, " + std::to_string(used) +
                               ", got " + std::to_string(P));

  const Tensor samples = indexes(P), subnetworks = indexes(P), orders = indexes(P);
  auto* sample = samples.mutable_data_ptr<int64_t>();
  auto* subnetwork = subnetworks.mutable_data_ptr<int64_t>();
  auto* order = orders.mutable_data_ptr<int64_t>();
  for_each_task(count, workers, [&](int64_t, int64_t i) {
    Chunk& chunk = chunks[i];
    const int64_t* functional = chunk.functional.data();
    for (int64_t b = chunk.begin; b < chunk.end; ++b)
      for (int64_t k = sample_offset[b]; k < sample_offset[b + 1]; ++k) {
        const int64_t s = *functional++, p = chunk.next[s]++;
        sample[p] = b;
        subnetwork[p] = s;
        order[k] = p;
      }
  });
  for (int64_t p = used; p < P; ++p) {
    sample[p] = 0;
    subnetwork[p] = 0;
    order[p] = p;
  }

  const Tensor overflow = torch::stable::empty({}, ScalarType::Bool);
  *static_cast<bool*>(overflow.mutable_data_ptr()) = false;
  return {samples, subnetworks, offsets, orders, sample_offsets, overflow};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("plan_routes", TORCH_BOX(&plan_routes_cpu)); }
