// routed_adapter on the CPU: checks the arguments, then computes with the kernels of routed_adapter/, compiled for each
// instruction set.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "parallel.h"
#include "routed_adapter/problem.h"
#include "routing/dtypes.h"
#include "routing/ranges.h"
#include "routing/routes.h"
#include "routing/types.h"
#include "scratch.h"

namespace artsy {
using namespace artsy::routed_adapter;
}

#define ARTSY_KERNELS "routed_adapter/kernels.h"
#include "each_isa_bfloat16.h"

namespace {

using namespace artsy;

// The arguments of the schema, checked as artsy_ext/ops/routed_adapter/__init__.py does.
struct Arguments {
  Arguments(const Tensor& x, const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets, const Tensor& order,
            const Tensor& sample_offsets, const Tensor& overflow, const Tensor& down, const Tensor& down_bias,
            const Tensor& up, const Tensor& up_bias, const std::optional<Tensor>& base, double scale,
            const std::string& activation, bool residual)
      : check("routed_adapter"),
        routes(checked_routes(check, x, sample, subnetwork, offsets, order, sample_offsets, overflow)),
        dtype(x.scalar_type()),
        scale(scale),
        residual(residual) {
    check.tensor("down", down, {"SRD"}, {dtype});
    check.tensor("down_bias", down_bias, {"SR"}, {dtype});
    check.tensor("up", up, {"SDR"}, {dtype});
    check.tensor("up_bias", up_bias, {"SD"}, {dtype});
    check.require(!(base && residual), "base must be None with residual, got a tensor");
    if (base) check.tensor("base", *base, {x.dim() == 3 ? "PND" : "PD"}, {dtype});
    this->activation = static_cast<Activation>(check.word("activation", activation, {"relu", "gelu", "gelu_tanh"}));
    routes.check_offsets(check);
    N = x.dim() == 3 ? check.size('N') : 1;
    D = check.size('D'), R = check.size('R');
    for (int64_t axis = 0; axis < x.dim(); ++axis) shape.push_back(x.size(axis));
    const Tensor* given[] = {&x, &down, &down_bias, &up, &up_bias};
    for (int i = 0; i < 5; ++i) tensors[i] = made_contiguous(*given[i]);
    if (base || residual) this->base = residual ? tensors[0] : made_contiguous(*base);
  }

  template <class Stored>
  Problem<Stored> problem() const {
    const auto numbers = [](const Tensor& tensor) { return static_cast<const Stored*>(tensor.const_data_ptr()); };
    return {numbers(tensors[0]),
            numbers(tensors[1]),
            numbers(tensors[2]),
            numbers(tensors[3]),
            numbers(tensors[4]),
            base ? numbers(*base) : nullptr,
            routes.offsets(),
            routes.S,
            N,
            D,
            R,
            scale,
            activation,
            residual};
  }

  // For `products` of the rows with a weight matrix.
  int64_t workers(int products) const {
    return workers_for(static_cast<double>(products) * static_cast<double>(routes.used() * N * D * R));
  }

  Check check;
  Routes routes;
  ScalarType dtype;
  double scale;
  bool residual;
  Activation activation;
  int64_t N, D, R;
  std::vector<int64_t> shape;
  Tensor tensors[5];  // x, down, down_bias, up, up_bias
  std::optional<Tensor> base;

 private:
  static Routes checked_routes(Check& check, const Tensor& x, const Tensor& sample, const Tensor& subnetwork,
                               const Tensor& offsets, const Tensor& order, const Tensor& sample_offsets,
                               const Tensor& overflow) {
    check.tensor("x", x, {"PND", "PD"}, floating_types);
    return {check, sample, subnetwork, offsets, order, sample_offsets, overflow};
  }
};

template <class Stored>
void fill(Stored* to, int64_t begin, int64_t end, Real<Stored> value) {
  std::fill(to + begin, to + std::max(begin, end), from_real<Stored>(value));
}

// What is saved for the gradient: the hidden values before activation, in the type they are computed in.
ScalarType hidden_dtype(ScalarType dtype) { return dtype == ScalarType::Double ? dtype : ScalarType::Float; }

std::tuple<Tensor, Tensor> routed_adapter_cpu(const Tensor& x, const Tensor& sample, const Tensor& subnetwork,
                                              const Tensor& offsets, const Tensor& order, const Tensor& sample_offsets,
                                              const Tensor& overflow, const Tensor& down, const Tensor& down_bias,
                                              const Tensor& up, const Tensor& up_bias, std::optional<Tensor> base,
                                              double scale, std::string activation, bool residual, bool save_hidden) {
  const Arguments given(x, sample, subnetwork, offsets, order, sample_offsets, overflow, down, down_bias, up, up_bias,
                        base, scale, activation, residual);
  const int64_t row = given.N * given.D, all = given.routes.P * row;
  const int64_t hidden_row = save_hidden ? given.N * given.R : 0, all_hidden = given.routes.P * hidden_row;
  std::vector<int64_t> hidden_shape{0};
  if (save_hidden) {
    hidden_shape = given.shape;
    hidden_shape.back() = given.R;
  }
  const Tensor result = torch::stable::empty(given.shape, given.dtype);
  const Tensor saved = torch::stable::empty(hidden_shape, hidden_dtype(given.dtype));
  with_type(given.dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    auto* y = static_cast<Stored*>(result.mutable_data_ptr());
    auto* hidden = static_cast<Real<Stored>*>(saved.mutable_data_ptr());
    if (given.routes.overflow()) {
      constexpr auto nan = std::numeric_limits<Real<Stored>>::quiet_NaN();
      fill(hidden, 0, all_hidden, nan);
      return fill(y, 0, all, nan);
    }
    const Problem<Stored> problem = given.problem<Stored>();
    const std::vector<Tile> tiles = tiles_of(problem);
    ARTSY_DISPATCH_BFLOAT16(Stored, forward(problem, tiles, given.workers(2), y, save_hidden ? hidden : nullptr));
    fill(y, given.routes.used() * row, all, 0);
    fill(hidden, given.routes.used() * hidden_row, all_hidden, 0);
  });
  return {result, saved};
}

// The positions of what has a gradient among the arguments of the schema.
enum Position { x_position = 0, down_position = 7, down_bias_position, up_position, up_bias_position, base_position };

std::vector<Tensor> routed_adapter_backward_cpu(const Tensor& grad, const Tensor& hidden, const Tensor& x,
                                                const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets,
                                                const Tensor& order, const Tensor& sample_offsets,
                                                const Tensor& overflow, const Tensor& down, const Tensor& down_bias,
                                                const Tensor& up, const Tensor& up_bias, std::optional<Tensor> base,
                                                double scale, std::string activation, bool residual, bool,
                                                std::vector<bool> needs) {
  const Arguments given(x, sample, subnetwork, offsets, order, sample_offsets, overflow, down, down_bias, up, up_bias,
                        base, scale, activation, residual);
  const bool tokens = x.dim() == 3;
  Check check = given.check;
  check.tensor("grad", grad, {tokens ? "PND" : "PD"}, {given.dtype});
  check.tensor("hidden", hidden, {tokens ? "PNR" : "PR"}, {hidden_dtype(given.dtype)});
  const Tensor gradient = made_contiguous(grad), saved = made_contiguous(hidden);
  const int64_t S = given.routes.S, N = given.N, D = given.D, R = given.R;
  const int64_t row = N * D, all = given.routes.P * row;

  const std::vector<int64_t> shapes[] = {given.shape, {S, R, D}, {S, R}, {S, D, R}, {S, D}, given.shape};
  const Position positions[] = {x_position,  down_position,    down_bias_position,
                                up_position, up_bias_position, base_position};
  std::vector<Tensor> results;
  void* memory[6] = {};
  for (int i = 0; i < 6; ++i) {
    const size_t position = positions[i];
    if (position >= needs.size() || !needs[position]) continue;
    results.push_back(torch::stable::empty(shapes[i], given.dtype));
    memory[i] = results.back().mutable_data_ptr();
  }

  with_type(given.dtype, [&](auto type) {
    using Stored = typename decltype(type)::type;
    const auto numbers = [&](int i) { return static_cast<Stored*>(memory[i]); };
    if (given.routes.overflow()) {  // NaN whatever the arguments are: they have no part in it
      const int64_t sizes[] = {all, S * R * D, S * R, S * D * R, S * D, all};
      for (int i = 0; i < 6; ++i)
        if (memory[i]) fill(numbers(i), 0, sizes[i], 0);
      return;
    }
    const Problem<Stored> problem = given.problem<Stored>();
    const auto* g = static_cast<const Stored*>(gradient.const_data_ptr());
    const Gradients<Stored> out{numbers(0), numbers(1), numbers(2), numbers(3), numbers(4)};
    const std::vector<Tile> tiles = tiles_of(problem);
    const auto* h = static_cast<const Real<Stored>*>(saved.const_data_ptr());
    ARTSY_DISPATCH(backward(problem, tiles, given.workers(4), g, h, out));
    const int64_t used = given.routes.used() * row;
    if (numbers(0)) fill(numbers(0), used, all, 0);
    if (numbers(5)) {
      std::copy_n(g, used, numbers(5));
      fill(numbers(5), used, all, 0);
    }
  });
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(artsy, CPU, m) {
  m.impl("routed_adapter", TORCH_BOX(&routed_adapter_cpu));
  m.impl("routed_adapter_backward", TORCH_BOX(&routed_adapter_backward_cpu));
}
