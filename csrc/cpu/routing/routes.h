// The arguments that all routed ops share: the six tensors of Routes.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

#include "../arguments.h"

namespace artsy {

// Checks them, as Check.routes in artsy_ext/ops/_check.py, and keeps them for reading. Fixes P, S and B.
class Routes {
 public:
  Routes(Check& check, const Tensor& sample, const Tensor& subnetwork, const Tensor& offsets, const Tensor& order,
         const Tensor& sample_offsets, const Tensor& overflow) {
    check.tensor("routes.sample", sample, {"P"}, {ScalarType::Long});
    check.tensor("routes.subnetwork", subnetwork, {"P"}, {ScalarType::Long});
    check.tensor("routes.order", order, {"P"}, {ScalarType::Long});
    one_more(check, "routes.offsets", offsets, 'S');
    one_more(check, "routes.sample_offsets", sample_offsets, 'B');
    check.tensor("routes.overflow", overflow, {""}, {ScalarType::Bool});
    S = check.size('S'), B = check.size('B'), P = check.size('P');
    sample_ = made_contiguous(sample);
    order_ = made_contiguous(order);
    offsets_ = made_contiguous(offsets);
    sample_offsets_ = made_contiguous(sample_offsets);
    overflow_ = *static_cast<const bool*>(overflow.const_data_ptr());
  }

  // Call it when every argument has been checked: what is not a plan must not lead out of their memory.
  void check_offsets(const Check& check) const {
    if (overflow_) return;
    rises(check, "routes.offsets", offsets(), S, P);
    rises(check, "routes.sample_offsets", sample_offsets(), B, P);
  }

  // For ops that follow the pairs' own indices.
  void check_pairs(const Check& check) const {
    if (overflow_) return;
    const bool complete = sample_offsets()[B] == used();
    if (!complete)
      check.fail("routes.sample_offsets must end at the number of pairs, " + std::to_string(used()) + ", got " +
                 std::to_string(sample_offsets()[B]));
    within(check, "routes.sample", sample(), used(), B);
    within(check, "routes.order", order(), used(), used());
  }

  int64_t S, B, P;

  bool overflow() const { return overflow_; }
  const int64_t* sample() const { return sample_.const_data_ptr<int64_t>(); }
  const int64_t* order() const { return order_.const_data_ptr<int64_t>(); }
  const int64_t* offsets() const { return offsets_.const_data_ptr<int64_t>(); }
  const int64_t* sample_offsets() const { return sample_offsets_.const_data_ptr<int64_t>(); }
  int64_t used() const { return offsets()[S]; }

 private:
  static void one_more(Check& check, const std::string& name, const Tensor& tensor, char dimension) {
    if (tensor.dim() != 1 || tensor.size(0) == 0)
      check.fail(name + " must be [" + dimension + "+1], got " + shape_of(tensor));
    check.device(name, tensor);
    check.dtype(name, tensor.scalar_type(), {ScalarType::Long});
    check.size(name, tensor.size(0) - 1, dimension);
  }

  static void rises(const Check& check, const std::string& name, const int64_t* values, int64_t count, int64_t most) {
    bool right = values[0] == 0 && values[count] <= most;
    for (int64_t i = 0; i < count; ++i) right &= values[i] <= values[i + 1];
    if (!right) check.fail(name + " must rise from 0 to at most P=" + std::to_string(most));
  }

  static void within(const Check& check, const std::string& name, const int64_t* values, int64_t count, int64_t bound) {
    bool right = true;
    for (int64_t i = 0; i < count; ++i) right &= values[i] >= 0 && values[i] < bound;
    if (!right) check.fail(name + " must be in [0, " + std::to_string(bound) + ")");
  }

  Tensor sample_, order_, offsets_, sample_offsets_;
  bool overflow_;
};

}  // namespace artsy
