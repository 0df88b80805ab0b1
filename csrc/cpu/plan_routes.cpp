// plan_routes on the CPU: mask -> pairs sorted by sub-network (routes) and by sample (order), by counting.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// std::invalid_argument reaches Python as ValueError.
[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("plan_routes: " + message); }

std::string describe(const Tensor& tensor) {
  std::ostringstream out;
  out << torch::headeronly::toString(tensor.scalar_type()) << " [";
  for (int64_t i = 0; i < tensor.dim(); ++i) out << (i ? ", " : "") << tensor.size(i);
  out << "]";
  return std::move(out).str();
}

Tensor indexes(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

// Calls visit(s) for every set column of a row. Masks are sparse: eight silent sub-networks are passed over at once.
template <class Visit>
inline void for_each_functional(const uint8_t* row, int64_t S, Visit visit) {
  int64_t s = 0;
  for (; s + 8 <= S; s += 8) {
    uint64_t word;
    std::memcpy(&word, row + s, sizeof(word));
    if (word == 0) continue;
    for (int64_t k = s; k < s + 8; ++k)
      if (row[k]) visit(k);
  }
  for (; s < S; ++s)
    if (row[s]) visit(s);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> plan_routes_cpu(const Tensor& mask_in,
                                                                           std::optional<int64_t> capacity) {
  if (mask_in.dim() != 2 || mask_in.scalar_type() != ScalarType::Bool)
    fail("mask must be a bool tensor [B, S], got " + describe(mask_in));
  if (capacity && *capacity < 0) fail("capacity must be >= 0, got " + std::to_string(*capacity));

  const Tensor mask_contiguous = torch::stable::contiguous(mask_in);
  const int64_t B = mask_contiguous.size(0), S = mask_contiguous.size(1);
  const auto* mask = reinterpret_cast<const uint8_t*>(mask_contiguous.const_data_ptr());

  Tensor offsets = indexes(S + 1), sample_offsets = indexes(B + 1);
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  auto* sample_offset = sample_offsets.mutable_data_ptr<int64_t>();

  std::vector<int64_t> next(S, 0);  // first the counts, then where the next pair of each sub-network goes
  sample_offset[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    int64_t count = 0;
    for_each_functional(mask + b * S, S, [&](int64_t s) {
      ++next[s];
      ++count;
    });
    sample_offset[b + 1] = sample_offset[b] + count;
  }
  offset[0] = 0;
  for (int64_t s = 0; s < S; ++s) {
    offset[s + 1] = offset[s] + next[s];
    next[s] = offset[s];
  }
  const int64_t used = offset[S];
  if (capacity && used > *capacity)
    fail("capacity must be at least the number of functional pairs, " + std::to_string(used) + ", got " +
         std::to_string(*capacity));
  const int64_t P = capacity.value_or(used);

  Tensor samples = indexes(P), subnetworks = indexes(P), orders = indexes(P);
  auto* sample = samples.mutable_data_ptr<int64_t>();
  auto* subnetwork = subnetworks.mutable_data_ptr<int64_t>();
  auto* order = orders.mutable_data_ptr<int64_t>();
  int64_t k = 0;
  for (int64_t b = 0; b < B; ++b) {
    for_each_functional(mask + b * S, S, [&](int64_t s) {
      const int64_t p = next[s]++;
      sample[p] = b;
      subnetwork[p] = s;
      order[k++] = p;
    });
  }
  for (int64_t p = used; p < P; ++p) {
    sample[p] = 0;
    subnetwork[p] = 0;
    order[p] = p;
  }

  Tensor overflow = torch::stable::empty({}, ScalarType::Bool);
  *static_cast<bool*>(overflow.mutable_data_ptr()) = false;
  return {samples, subnetworks, offsets, orders, sample_offsets, overflow};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) { m.impl("plan_routes", TORCH_BOX(&plan_routes_cpu)); }
