// routed_adapter, forward and backward. Compiled once per instruction set by each_isa.h.
// clang-format off: each needs those above it
#include "../simd.h"
#include "../routing/numbers.h"
#include "../routing/products.h"
#include "../routing/rows.h"
#include "../routing/activation.h"
#include "output_rows.h"
#include "forward.h"
#include "backward.h"
// clang-format on
