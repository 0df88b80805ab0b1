// plan_routes on the CPU: mask -> pairs sorted by sub-network (routes) and by sample (order), by counting.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
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
  std::vector<int64_t> functional;  // the sub-networks of all pairs by sample: the mask is read once
  sample_offset[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    for_each_functional(mask + b * S, S, [&](int64_t s) {
      ++next[s];
      functional.push_back(s);
    });
    sample_offset[b + 1] = static_cast<int64_t>(functional.size());
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
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t k = sample_offset[b]; k < sample_offset[b + 1]; ++k) {
      const int64_t s = functional[k], p = next[s]++;
      sample[p] = b;
      subnetwork[p] = s;
      order[k] = p;
    }
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
