// The schemas of all ops, once. Kernels are registered per device: csrc/cpu/<op>.cpp, csrc/cuda/<op>.cu, or the
// definition in artsy_ext/ops/<op>/reference.py where a device has no kernel of its own.
//
// A differentiable op comes with `<op>_backward`: the gradients of the outputs, the op's own arguments, and `needs`,
// one flag per positional argument. It returns the gradients of the flagged arguments only, in the order of the
// arguments. What an op saves for its gradient is its last output, empty where it is told not to.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

const std::string routes =
    "Tensor sample, Tensor subnetwork, Tensor offsets, Tensor order, Tensor sample_offsets, Tensor overflow";

const std::string spikes =
    "Tensor pre, Tensor post, Tensor a_plus, Tensor a_minus, Tensor? trace_pre=None, Tensor? trace_post=None, "
    "Tensor? trace_pre_slow=None, Tensor? trace_post_slow=None, Tensor? trace_eligibility=None, "
    "Tensor? modulation=None, Tensor? mask=None";

// The fields of STDPRule; a trace that a rule does not keep is returned empty, [0].
const std::string rule =
    "float decay_pre, float decay_post, float gain_pre, float gain_post, float x_target, str pairing, str timing, "
    "str dependence, float exponent, str evaluate, float w_min, float w_max, str clamp, str reduction, "
    "float weight_decay, float? eligibility, int modulation_delay, float[]? triplet";

const std::string traces = "Tensor, Tensor, Tensor, Tensor, Tensor";

void define(torch::stable::detail::StableLibrary& m, const std::string& name, const std::string& arguments,
            const std::string& result) {
  m.def((name + "(" + arguments + ") -> " + result).c_str());
}

void define_differentiable(torch::stable::detail::StableLibrary& m, const std::string& name,
                           const std::string& arguments, const std::string& result,
                           const std::string& gradients = "Tensor grad") {
  define(m, name, arguments, result);
  const bool has_keywords = arguments.find('*') != std::string::npos;
  define(m, name + "_backward", gradients + ", " + arguments + (has_keywords ? "" : ", *") + ", bool[] needs",
         "Tensor[]");
}

}  // namespace

STABLE_TORCH_LIBRARY(artsy, m) {
  define_differentiable(
      m, "encode_spikes",
      "Tensor x, SymInt steps, *, str code=\"rate\", SymInt seed=0, SymInt offset=0, ScalarType? dtype=None", "Tensor");

  define_differentiable(m, "stdp", "Tensor weight, " + spikes + ", *, " + rule, "(Tensor, " + traces + ")",
                        "Tensor[] grads");
  define(m, "stdp_", "Tensor(a!) weight, " + spikes + ", *, " + rule, "(" + traces + ")");
  define_differentiable(m, "stdp_consolidate",
                        "Tensor weight, Tensor functional, " + spikes + ", *, float on, float off, " + rule,
                        "(Tensor, " + traces + ", Tensor)", "Tensor[] grads");
  define(m, "consolidate", "Tensor weight, Tensor functional, float on, float off", "Tensor");

  define_differentiable(m, "synapse_currents", "Tensor x, Tensor weight, Tensor? functional, Tensor bias", "Tensor");
  define_differentiable(m, "synapse_scores",
                        "Tensor features, Tensor down, Tensor down_bias, Tensor up, Tensor up_bias", "Tensor");

  define(m, "plan_routes", "Tensor mask, SymInt? capacity=None",
         "(Tensor sample, Tensor subnetwork, Tensor offsets, Tensor order, Tensor sample_offsets, Tensor overflow)");
  define_differentiable(m, "routed_adapter",
                        "Tensor x, " + routes +
                            ", Tensor down, Tensor down_bias, Tensor up, Tensor up_bias, Tensor? base=None, *, "
                            "float scale=1.0, str activation=\"relu\", bool residual=False, bool save_hidden=True",
                        "(Tensor y, Tensor hidden)", "Tensor grad, Tensor hidden");
  define_differentiable(m, "combine_routes", "Tensor y, " + routes + ", Tensor? weight=None, Tensor? base=None",
                        "Tensor");
  define_differentiable(m, "prototype_logits",
                        "Tensor features, " + routes +
                            ", Tensor prototypes, Tensor weight, Tensor? base_features=None, "
                            "Tensor? base_prototypes=None, *, str reduce=\"max\"",
                        "Tensor");
}
