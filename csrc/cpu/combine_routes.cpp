// combine_routes on the CPU: checks the arguments, then computes with the kernels of combine_routes/, compiled for each
// instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "combine_routes/problem.h"
#include "routing/dtypes.h"
#include "routing/ranges.h"
#include "routing/routes.h"
#include "routing/types.h"

namespace artsy {
using namespace artsy::combine_routes;
}

#define ARTSY_KERNELS "combine_routes/kernels.h"
#include "each_isa.h"

namespace {

using namespace artsy;

// The arguments of the schema, checked as artsy_ext/ops/combine_routes/__init__.py does.
struct Arguments {
  Arguments(const Tensor& y, const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets, const Tensor& order,
            const Tensor& sample_offsets, const Tensor& overflow, const std::optional<Tensor>& weight,
            const std::optional<Tensor>& base)
      : check("combine_routes"),
        routes(checked_routes(check, y, sample, subnetwork, offsets, order, sample_offsets, overflow)),
        dtype(y.scalar_type()),
        y(made_contiguous(y)) {
    for (int64_t axis = 1; axis < y.dim(); ++axis) {
      shape.push_back(y.size(axis));
      L *= y.size(axis);
    }
    shape.insert(shape.begin(), routes.B);
    if (weight) {
      check.tensor("weight", *weight, {"P"}, {dtype});
      this->weight = made_contiguous(*weight);
    }
    if (base) {
      check_rows("base", *base);
      this->base = made_contiguous(*base);
    }
    routes.check_offsets(check);
    routes.check_pairs(check);
  }

  // [B, ...] with the rows of y.
  void check_rows(const std::string& name, const Tensor& rows) const {
    if (rows.dim() == 0) check.fail(name + " must be [B, ...], got []");
    if (rows.size(0) != routes.B)
      check.fail(name + " must be [B, ...] with B=" + std::to_string(routes.B) + ", got " + shape_of(rows));
    bool same = rows.dim() == y.dim();
    for (int64_t axis = 1; same && axis < rows.dim(); ++axis) same = rows.size(axis) == y.size(axis);
    if (!same)
      check.fail(name + " must be [B, ...] with the row shape of y, " + row_shape() + ", got " + shape_of(rows));
    check.device(name, rows);
    check.dtype(name, rows.scalar_type(), {dtype});
  }

  template <class Stored>
  Problem<Stored> problem() const {
    const auto numbers = [](const std::optional<Tensor>& tensor) {
      return tensor ? static_cast<const Stored*>(tensor->const_data_ptr()) : nullptr;
    };
    return {numbers(y),     numbers(weight),         numbers(base), routes.sample(),
            routes.order(), routes.sample_offsets(), routes.B,      L};
  }

  int64_t workers() const {
    return workers_for(static_cast<double>(routes.B + routes.used()) * static_cast<double>(L));
  }

  Check check;
  Routes routes;
  ScalarType dtype;
  int64_t L = 1;
  std::vector<int64_t> shape;  // of the result
  Tensor y;
  std::optional<Tensor> weight, base;

 private:
  static Routes checked_routes(Check& check, const Tensor& y, const Tensor& sample, const Tensor& subnetwork,
                               const Tensor& offsets, const Tensor& order, const Tensor& sample_offsets,
                               const Tensor& overflow) {
    check.require(y.dim() > 0, "y must be [P, ...], got []");
    check.size("y", y.size(0), 'P');
    check.device("y", y);
    check.dtype("y", y.scalar_type(), floating_types);
    return {check, sample, subnetwork, offsets, order, sample_offsets, overflow};
  }

  std::string row_shape() const {
    std::string text = "[";
    for (int64_t axis = 1; axis < y.dim(); ++axis) text += (axis > 1 ? ", " : "") + std::to_string(y.size(axis));
    return text + "]";
  }
};

Tensor combine_routes_cpu(const Tensor& y, const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets,
                          const Tensor& order, const Tensor& sample_offsets, const Tensor& overflow,
                          std::optional<Tensor> weight, std::optional<Tensor> base) {
  const Arguments given(y, sample, subnetwork, offsets, order, sample_offsets, overflow, weight, base);
  const Tensor result = torch::stable::empty(given.shape, given.dtype);
  with_type(given.dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    auto* out = static_cast<Stored*>(result.mutable_data_ptr());
    if (given.routes.overflow()) {
      std::fill_n(out, given.routes.B * given.L, from_real<Stored>(std::numeric_limits<Real<Stored>>::quiet_NaN()));
      return;
    }
    const Problem<Stored> problem = given.problem<Stored>();
    ARTSY_DISPATCH(forward(problem, given.workers(), out));
  });
  return result;
}

// The positions of what has a gradient among the arguments of the schema.
enum Position { y_position = 0, weight_position = 7, base_position = 8 };

std::vector<Tensor> combine_routes_backward_cpu(const Tensor& grad, const Tensor& y, const Tensor& sample,
                                                const Tensor& subnetwork, const Tensor& offsets, const Tensor& order,
                                                const Tensor& sample_offsets, const Tensor& overflow,
                                                std::optional<Tensor> weight, std::optional<Tensor> base,
                                                std::vector<bool> needs) {
  const Arguments given(y, sample, subnetwork, offsets, order, sample_offsets, overflow, weight, base);
  given.check_rows("grad", grad);
  const Tensor gradient = made_contiguous(grad);
  const int64_t B = given.routes.B, P = given.routes.P, L = given.L;

  std::vector<Tensor> results;
  const auto wanted = [&](size_t position, int64_t first) -> void* {
    if (position >= needs.size() || !needs[position]) return nullptr;
    std::vector<int64_t> shape{first};
    if (position != weight_position) shape.insert(shape.end(), given.shape.begin() + 1, given.shape.end());
    results.push_back(torch::stable::empty(shape, given.dtype));
    return results.back().mutable_data_ptr();
  };
  void* const memory[] = {wanted(y_position, P), wanted(weight_position, P), wanted(base_position, B)};

  with_type(given.dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    const auto numbers = [&](int i) { return static_cast<Stored*>(memory[i]); };
    // Padding has no part in the result, and nothing has where the plan overflowed: there it is NaN.
    const int64_t used = given.routes.overflow() ? 0 : given.routes.used();
    const auto* g = static_cast<const Stored*>(gradient.const_data_ptr());
    if (used) {
      const Problem<Stored> problem = given.problem<Stored>();
      ARTSY_DISPATCH(backward(problem, used, given.workers(), g, numbers(0), numbers(1)));
    }
    if (numbers(0)) std::fill(numbers(0) + used * L, numbers(0) + P * L, Stored{});
    if (numbers(1)) std::fill(numbers(1) + used, numbers(1) + P, Stored{});
    if (numbers(2) && given.routes.overflow())
      std::fill_n(numbers(2), B * L, Stored{});
    else if (numbers(2))
      std::copy_n(g, B * L, numbers(2));
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("combine_routes", TORCH_BOX(&combine_routes_cpu));
  m.impl("combine_routes_backward", TORCH_BOX(&combine_routes_backward_cpu));
}
