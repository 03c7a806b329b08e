// The textbook schedule (ZeRO, arXiv 1910.02054 sec. 5 and 7), layer by layer, with no framework's buffers: what
// shardrun executes. 16-bit training keeps 16-bit parameters and gradients and fp32 master weights and moments; fp32
// training keeps everything once. Shards are padded per layer to a multiple of N.

#include "planner/frameworks/native/native_rules.hpp"

#include <fmt/format.h>

#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::string_view kPaper = "ZeRO (arXiv 1910.02054) sec. 5";

constexpr BufferSpec kParameters{"parameters of a layer",
                                 "c x P_l padded, / N with stage 3",
                                 kPaper,
                                 C::Parameters,
                                 Place::Gpu,
                                 S::Compute,
                                 L::Persistent};
constexpr BufferSpec kMaster{
    "master parameters of a layer", "4 x P_l / N", kPaper, C::MasterParameters, Place::Gpu, S::Compute, L::Persistent};
constexpr BufferSpec kMoments{
    "optimizer states of a layer", "8 x P_l / N", kPaper, C::OptimizerStates, Place::Gpu, S::Compute, L::FromFirstStep};
constexpr BufferSpec kHostMaster{"master parameters in host memory",
                                 "4 x P_l / N",
                                 kPaper,
                                 C::MasterParameters,
                                 Place::HostPageable,
                                 S::Host,
                                 L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "8 x P_l / N",
                                  kPaper,
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kGathered{
    "gathered parameters of a layer", "c x P_l", kPaper, C::GatheredParameters, Place::Gpu, S::AllGather};
constexpr BufferSpec kGradient{"gradient of a layer", "c x P_l padded", kPaper, C::Gradients};
constexpr BufferSpec kFreshGradient{"gradient of a module that is added to an earlier one", "c x numel", kPaper,
                                    C::Gradients};
constexpr BufferSpec kGradientShard{
    "gradient shard of a layer", "c x P_l / N", kPaper, C::Gradients, Place::Gpu, S::Reduce};
constexpr BufferSpec kHostGradient{
    "gradient shard in host memory", "c x P_l / N", kPaper, C::Gradients, Place::HostPageable, S::Host};
/// In fp32 nothing but the parameters themselves is stepped: with stages 1 and 2 a rank's own part of them.
constexpr BufferSpec kSteppedShard{"a rank's part of whole parameters while it is stepped", "4 x P_l / N", kPaper,
                                   C::Temporaries};

} // namespace

NativeRules::NativeRules(const PlanInput& input)
    : m_model(input.model), m_compute(computeDtype(input.training.precision)),
      m_activations(input.model, input.training, m_compute)
{
    resize(input);
}

void NativeRules::resize(const PlanInput& input)
{
    m_training = input.training;
    m_options = std::get<NativeOptions>(input.strategy.options);
    m_cluster = &input.cluster;
    m_ranks = input.ranks();
    m_sizes.clear();
    m_activations.defineSizes(m_sizes, m_training);
    m_world = m_sizes.addGroup({"world", m_ranks, nodesOfConsecutive(input.cluster, m_ranks)});
    m_types.assign(m_model.layerTypes.size(), {});
    for (std::size_t type = 0; type < m_types.size(); ++type)
        defineType(static_cast<int>(type), m_types[type]);
    std::int64_t stepped = 0;
    for (const int type : m_model.layers)
        stepped = checkedAdd(stepped, optimizerElements(m_types[static_cast<std::size_t>(type)]));
    m_clip = m_sizes.addPayload({"gradient norm and clipping", "3 c x P / N", kPaper,
                                 clippingBytes(m_training, bytesOf(stepped, m_compute)), m_compute});
    // One kernel a layer; parameters are written in the compute dtype too.
    m_step = m_sizes.addPayload({"optimizer step", "accesses x P / N", kPaper,
                                 optimizerStepBytes(m_training.optimizer, OptimizerForm::Fused, stepped,
                                                    {DType::Fp32, m_compute, DType::Fp32}) +
                                     (mixed() ? bytesOf(stepped, m_compute) : Bytes(0)),
                                 DType::Fp32});
}

std::string NativeRules::structureKey() const
{
    return fmt::format("native {} stage{} prefetch{} off{} {}", m_model.id, m_options.stage, m_options.prefetch,
                       m_options.offloadOptimizer, activationStructureKey(m_training));
}

ModelStates NativeRules::modelStates() const
{
    ModelStates states;
    for (std::size_t type = 0; type < m_types.size(); ++type) {
        const std::int64_t count = m_model.layersOfType(static_cast<int>(type));
        const TypeSizes& sizes = m_types[type];
        states.parameters += bytesOf(keptParameters(sizes), m_compute) * count;
        states.gradients += bytesOf(m_options.stage >= 2 ? sizes.trainableShard : sizes.trainable, m_compute) * count;
        if (m_options.offloadOptimizer)
            continue;
        if (mixed())
            states.masterParameters += bytesOf(optimizerElements(sizes), DType::Fp32) * count;
        states.optimizerStates += stateBytes(optimizerElements(sizes)) * count;
    }
    return states;
}

double NativeRules::textbookPsi() const
{
    const auto steps = static_cast<double>(m_training.gradientAccumulation);
    switch (m_options.stage) {
    case 3: return 3 * steps;
    case 2: return steps + 1;
    default: return 2;
    }
}

Bytes NativeRules::hostInitPeakPerNode() const
{
    return bytesOf(m_model.parameters(), m_training.precision.load);
}

CheckpointSize NativeRules::checkpoint() const
{
    CheckpointSize size;
    size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
    size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
    for (std::size_t type = 0; type < m_types.size(); ++type) {
        const std::int64_t elements = optimizerElements(m_types[type]);
        size.shardedPerRank +=
            (bytesOf(elements, DType::Fp32) + stateBytes(elements)) * m_model.layersOfType(static_cast<int>(type));
    }
    size.shardedTotal = size.shardedPerRank * (m_options.stage == 0 ? 1 : m_ranks);
    size.filesPerRank = 1;
    size.layout = "one file a rank with master weights and moments, and a manifest";
    return size;
}

std::int64_t NativeRules::keptParameters(const TypeSizes& sizes) const
{
    if (m_options.stage >= 3)
        return sizes.shard;
    return m_options.stage == 0 ? sizes.all : checkedMultiply(sizes.shard, m_ranks);
}

Bytes NativeRules::stateBytes(std::int64_t elements) const
{
    return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), DType::Fp32);
}

void NativeRules::defineType(int index, TypeSizes& sizes)
{
    const LayerType& type = m_model.layerTypes[static_cast<std::size_t>(index)];
    sizes.all = type.numel();
    sizes.trainable = type.trainableNumel();
    sizes.shard = ceilDivide(sizes.all, m_ranks);
    sizes.trainableShard = ceilDivide(sizes.trainable, m_ranks);
    const std::int64_t optimizer = optimizerElements(sizes);
    const bool offload = m_options.offloadOptimizer;
    const std::int64_t padded = checkedMultiply(sizes.shard, m_ranks);
    const std::int64_t whole = m_options.stage == 0 ? sizes.trainable : checkedMultiply(sizes.trainableShard, m_ranks);
    const auto add = [&](const BufferSpec& spec, Bytes bytes) { return m_sizes.addBuffer(spec, bytes, index); };
    sizes.parameters = add(kParameters, bytesOf(keptParameters(sizes), m_compute));
    sizes.master = add(offload ? kHostMaster : kMaster, keepsMaster() ? bytesOf(optimizer, DType::Fp32) : Bytes(0));
    sizes.moments = add(offload ? kHostMoments : kMoments, stateBytes(optimizer));
    sizes.gathered = add(kGathered, bytesOf(padded, m_compute));
    sizes.gradient = add(kGradient, bytesOf(whole, m_compute));
    sizes.gradientShard = add(kGradientShard, bytesOf(sizes.trainableShard, m_compute));
    sizes.hostGradient = add(kHostGradient, bytesOf(optimizer, m_compute));
    sizes.steppedShard = add(kSteppedShard, bytesOf(sizes.trainableShard, m_compute));
    for (const LeafModule& module : m_activations.modules(index)) {
        const Bytes gradient = bytesOf(module.trainable, m_compute);
        sizes.freshGradients.push_back(module.trainable == 0 ? -1 : add(kFreshGradient, gradient));
        sizes.accumulations.push_back(
            m_sizes.addPayload({"gradient added to an earlier one", "3 c x numel", kPaper, gradient * 3, m_compute}));
    }
    sizes.addShard = m_sizes.addPayload({"gradient shard added to an earlier one", "3 c x P_l / N", kPaper,
                                         bytesOf(sizes.trainableShard, m_compute) * 3, m_compute});
    sizes.gather = m_sizes.addPayload({"parameters", "c x P_l", kPaper, bytesOf(padded, m_compute), m_compute});
    sizes.reduce = m_sizes.addPayload({"gradients", "c x P_l", kPaper, bytesOf(whole, m_compute), m_compute});
    sizes.toHost =
        m_sizes.addPayload({"gradients to the host", "c x P_l / N", kPaper, bytesOf(optimizer, m_compute), m_compute});
    sizes.toDevice =
        m_sizes.addPayload({"parameters to the GPU", "c x P_l / N", kPaper, bytesOf(optimizer, m_compute), m_compute});
}

std::vector<std::string> nativeRefusals(const PlanInput& input)
{
    const auto& options = std::get<NativeOptions>(input.strategy.options);
    if (options.stage < 0 || options.stage > 3)
        return {fmt::format("stage {} does not exist: native has stages 0 to 3", options.stage)};
    if (input.training.lora && input.training.lora->baseDtype)
        return {"shardrun does not train on a quantised base (lora base_dtype)"};
    if (input.training.checkpointSegment > 1 && input.training.implementation != Implementation::Shardrun)
        return {"native checkpoints single blocks: leave checkpoint_segment at 1"};
    return {};
}

std::unique_ptr<FrameworkRules> makeNativeRules(const PlanInput& input)
{
    return std::make_unique<NativeRules>(input);
}

} // namespace shardwright
