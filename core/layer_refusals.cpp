#include "core/layer_refusals.hpp"

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace shardwright {

namespace {

constexpr std::array<std::string_view, 5> kFamilies{"gpt2", "llama", "mistral", "qwen2", "qwen3"};

// Their base grows by a power of d / (d - 2).
constexpr std::int64_t kLeastDynamicHead = 4;

void refuseModel(const Model& model, const Training& training, std::vector<std::string>& reasons)
{
    const Architecture& a = model.architecture;
    const bool known = std::find(kFamilies.begin(), kFamilies.end(), a.modelType) != kFamilies.end();
    if (!known)
        reasons.push_back(fmt::format("shardrun has no layers for model_type {}: it has {}", a.modelType,
                                      fmt::join(kFamilies, ", ")));
    if (a.experts > 0)
        reasons.push_back("shardrun has no mixture of experts");
    if (a.parallelAttention)
        reasons.push_back("shardrun has no blocks whose attention and MLP run in parallel");
    if (!known)
        return; // whose other settings were not read
    for (const std::string& setting : a.numerics.others)
        reasons.push_back(fmt::format("shardrun does not compute \"{}\" of the model's config", setting));
    if (a.modelType != "gpt2" && a.headDim % 2 != 0)
        reasons.push_back(fmt::format("rotary embeddings need an even head_dim, not {}", a.headDim));
    if (a.numerics.rope.kind == RopeKind::Dynamic && a.headDim < kLeastDynamicHead)
        reasons.push_back(
            fmt::format("dynamic rotary embeddings need a head_dim of {}, not {}", kLeastDynamicHead, a.headDim));
    if (a.modelType == "gpt2" && a.maxPositions < training.sequenceLength)
        reasons.push_back(fmt::format("the model has {} learned positions, fewer than the {} tokens of a sequence",
                                      a.maxPositions, training.sequenceLength));
}

bool computable(DType dtype)
{
    return dtype == DType::Fp32 || dtype == DType::Bf16;
}

} // namespace

std::vector<std::string> layerRefusals(const Model& model, const Training& training)
{
    std::vector<std::string> reasons;
    refuseModel(model, training, reasons);
    if (training.lora)
        reasons.push_back("shardrun has no adapters (lora)");
    const DType compute = training.precision.mixed.value_or(training.precision.load);
    if (!computable(compute) || !computable(training.precision.load))
        reasons.push_back(fmt::format("shardrun computes in fp32 or bf16, not {}",
                                      nameOf(computable(compute) ? training.precision.load : compute)));
    if (training.precision.fp8)
        reasons.push_back("shardrun has no float8 layers");
    if (training.attention != Attention::Flash)
        reasons.push_back(fmt::format("shardrun has one attention, flash, not {}", nameOf(training.attention)));
    if (training.loss != LossKind::Default)
        reasons.push_back(fmt::format("shardrun has one loss, default, not {}", nameOf(training.loss)));
    if (training.compile)
        reasons.push_back("shardrun does not compile blocks (compile)");
    if (training.holdsLogits)
        reasons.push_back("shardrun holds no logits between micro-steps (holds_logits)");
    if (training.checkpointSegment > 1)
        reasons.push_back("shardrun checkpoints single blocks: leave checkpoint_segment at 1");
    if (training.launchBlocking)
        reasons.push_back("shardrun's host does not wait for every kernel (launch_blocking)");
    if (training.hostThreads > 0)
        reasons.push_back("shardrun's own --threads says how many compute: leave host_threads at 0");
    return reasons;
}

} // namespace shardwright
