// From a tensor's dtype to the type of its numbers.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <type_traits>

#include "../arguments.h"
#include "types.h"

namespace artsy {

constexpr std::initializer_list<ScalarType> floating_types = {ScalarType::Float, ScalarType::Double,
                                                              ScalarType::BFloat16, ScalarType::Half};

// call(std::type_identity<Stored>()) for one of floating_types.
template <class Call>
auto with_type(ScalarType type, const Call& call) {
  switch (type) {
    case ScalarType::Double:
      return call(std::type_identity<double>());
    case ScalarType::BFloat16:
      return call(std::type_identity<BFloat16>());
    case ScalarType::Half:
      return call(std::type_identity<Float16>());
    default:
      return call(std::type_identity<float>());
  }
}

}  // namespace artsy
