// Sizes and options of FSDP1. Sources: torch/distributed/fsdp/ of PyTorch 2.15: _runtime_utils.py ("runtime"),
// _flat_param.py ("flat_param"), api.py; Accelerate 1.15 accelerator.py for the upcast of trainable parameters.

#include "planner/frameworks/fsdp/fsdp1_rules.hpp"

#include <algorithm>

#include <fmt/compile.h>

#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::int64_t kAlignment = 16; // bytes; flat_param _get_aligned_numel, with use_orig_params

// The pool of stream HostToDevice stands for FSDP1's pre-unshard stream: it copies from the host and casts.
constexpr BufferSpec kShard{"sharded flat parameter of a unit",
                            "d x E / N",
                            "flat_param shard",
                            C::Parameters,
                            Place::Gpu,
                            S::Compute,
                            L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of a unit's shard",
                              "moments x d x E / N",
                              "torch.optim",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kUpload{"shard copied from the host", "d x E / N", "flat_param pre_unshard, CPUOffload",
                             C::CommunicationBuffers,      Place::Gpu,  S::HostToDevice};
constexpr BufferSpec kLowPrecisionShard{
    "shard in the compute dtype", "c x E / N", "flat_param _use_low_precision_shard",
    C::CommunicationBuffers,      Place::Gpu,  S::HostToDevice};
constexpr BufferSpec kUnsharded{"unsharded flat parameter of a unit",
                                "c x E",
                                "flat_param _alloc_padded_unsharded_flat_param",
                                C::GatheredParameters,
                                Place::Gpu,
                                S::AllGather};
constexpr BufferSpec kZeroGradient{"zeros for the frozen part of a flat gradient", "c x frozen",
                                   "torch split_with_sizes_backward", C::Gradients};
constexpr BufferSpec kFlatGradient{"flat gradient of a unit", "c x E",
                                   "torch split_with_sizes_backward concatenates (PyTorch 117323)", C::Gradients};
constexpr BufferSpec kReduceCast{"flat gradient in the reduce dtype",
                                 "r x E",
                                 "runtime _post_backward_hook",
                                 C::CommunicationBuffers,
                                 Place::Gpu,
                                 S::Reduce};
constexpr BufferSpec kReducePadded{"flat gradient padded to N", "r x E",    "runtime _get_reduce_scatter_tensors",
                                   C::CommunicationBuffers,     Place::Gpu, S::Reduce};
constexpr BufferSpec kReduceOutput{"reduce-scatter output of a unit", "r x E / N", "runtime _reduce_grad",
                                   C::CommunicationBuffers,           Place::Gpu,  S::Reduce};
constexpr BufferSpec kGradientShard{
    "sharded gradient of a unit", "d x E / N", "runtime _accumulate_sharded_grad", C::Gradients, Place::Gpu, S::Reduce};
constexpr BufferSpec kHostShard{"sharded flat parameter in pinned host memory",
                                "d x E / N, rounded up to a power of two",
                                "flat_param _local_shard.pin_memory(); CachingHostAllocatorImpl PowerOf2Ceil",
                                C::Parameters,
                                Place::HostPinned,
                                S::Host,
                                L::Persistent};
constexpr BufferSpec kHostGradient{"sharded gradient in pinned host memory",
                                   "d x E / N, rounded up to a power of two",
                                   "flat_param _cpu_grad; CachingHostAllocatorImpl PowerOf2Ceil",
                                   C::Gradients,
                                   Place::HostPinned,
                                   S::Host,
                                   L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "moments x d x E / N",
                                  "torch.optim on CPU",
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kInitModule{"unsharded unit while it is wrapped", "l x E", "FSDP moves the unit to device_id",
                                 C::Temporaries};
constexpr BufferSpec kInitFlat{"unsharded flat parameter while it is built", "l x E", "flat_param flatten_tensors",
                               C::Temporaries};

bool hybrid(const Fsdp1Options& options)
{
    return options.sharding == ShardingStrategy::HybridShard || options.sharding == ShardingStrategy::HybridShardZero2;
}

std::int64_t shardRanksOf(const PlanInput& input)
{
    const auto& options = std::get<Fsdp1Options>(input.strategy.options);
    if (options.sharding == ShardingStrategy::NoShard)
        return 1;
    if (hybrid(options))
        return options.shardGroup > 0 ? options.shardGroup
                                      : std::min<std::int64_t>(input.cluster.gpusPerNode, input.ranks());
    return input.ranks(); // a world of one rank falls back to NO_SHARD by itself
}

/// What gradients are divided by before the reduction, that they neither over- nor underflow: about the square root of
/// the ranks. algorithms/_comm_hooks/default_hooks.py DefaultState._get_gradient_predivide_factor.
std::int64_t predivideFactor(std::int64_t ranks)
{
    std::int64_t factor = 1;
    while (ranks % factor == 0 && ranks / factor > factor)
        factor *= 2;
    return factor;
}

FsdpShape shapeOf(const PlanInput& input)
{
    const auto& options = std::get<Fsdp1Options>(input.strategy.options);
    return FsdpShape(input,
                     {options.paramDtype, options.reduceDtype, options.upcastTrainable, options.offloadParams,
                      options.cpuRamEfficientLoading},
                     {options.wrap, options.minNumParams, false}, {});
}

} // namespace

Fsdp1Rules::Fsdp1Rules(const PlanInput& input)
    : FsdpRules(shapeOf(input)), m_options(std::get<Fsdp1Options>(input.strategy.options))
{
    resize(input);
}

void Fsdp1Rules::resize(const PlanInput& input)
{
    m_options = std::get<Fsdp1Options>(input.strategy.options);
    m_processGroup = m_options.sharding == ShardingStrategy::NoShard ? input.ranks() : shardRanksOf(input);
    m_units.clear();
    resizeShape(input, shardRanksOf(input));
}

bool Fsdp1Rules::reshardsAfterForward() const
{
    return m_options.sharding == ShardingStrategy::FullShard || m_options.sharding == ShardingStrategy::HybridShard;
}

std::string Fsdp1Rules::structureKey() const
{
    return fmt::format(
        FMT_COMPILE("fsdp1 {} {} off{} bwd{} fwd{} limit{} wrap{}/{} sync{} rep{} one{} pad{} p{} r{} d{}/{} {}"),
        m_shape.model.id, nameOf(m_options.sharding), m_options.offloadParams, nameOf(m_options.backwardPrefetch),
        m_options.forwardPrefetch, m_options.limitAllGathers, nameOf(m_options.wrap), m_options.minNumParams,
        m_options.noSync, m_shape.replicas.ranks > 1, !m_shape.sharded(), paddingKey(), nameOf(m_shape.compute),
        nameOf(m_shape.reduce), nameOf(m_shape.trained), nameOf(m_shape.frozen),
        activationStructureKey(m_shape.training));
}

std::string Fsdp1Rules::paddingKey() const
{
    std::string key;
    for (const Fsdp1Unit& unit : m_units)
        key += unit.padded ? '1' : '0';
    return key;
}

double Fsdp1Rules::textbookPsi() const
{
    const auto steps = static_cast<double>(m_shape.training.gradientAccumulation);
    if (!m_shape.sharded())
        return 2;
    const double replication = hybrid(m_options) ? 2.0 / static_cast<double>(m_shape.shardRanks) : 0;
    return (reshardsAfterForward() ? 3 : 2) * steps + replication;
}

std::string Fsdp1Rules::psiDifference() const
{
    std::string why;
    const auto say = [&why](std::string_view reason) { why += (why.empty() ? "" : "; ") + std::string(reason); };
    if (m_shape.sharded() && reshardsAfterForward())
        say("the root unit (embedding, final norm, head) is not resharded after forward and skips its second "
            "all-gather");
    if (m_shape.sharded() && reshardsAfterForward() && m_shape.checkpointsSegments())
        say("recomputing a checkpoint of several blocks gathers all of them but the last once more");
    if (m_shape.training.gradientAccumulation > 1)
        say(m_options.noSync ? "no_sync reduces only in the last micro-step"
                             : "every micro-step reduces, the all-reduce between replicas included");
    if (m_shape.training.gradientAccumulation > 1 && m_options.noSync && m_shape.sharded() && !reshardsAfterForward())
        say("under no_sync parameters stay unsharded from one micro-step to the next");
    if (m_shape.model.trainableParameters() < m_shape.model.parameters())
        say("units without a trainable parameter are gathered but have no gradients to reduce");
    say("flat parameters are padded");
    return why;
}

std::vector<Note> Fsdp1Rules::assumptions() const
{
    std::vector<Note> notes;
    if (m_shape.model.trainableParameters() < m_shape.model.parameters()) {
        if (m_options.useOrigParams)
            notes.push_back(
                {"a flat parameter that mixes frozen and trainable tensors has a gradient of its whole size",
                 Provenance::Vendor, "PyTorch FSDP documentation, use_orig_params"});
        else
            notes.push_back({"trainable tensors have flat parameters of their own, as PEFT's fsdp_auto_wrap_policy "
                             "makes them; they are gathered here together with their block",
                             Provenance::Vendor, "peft/utils/other.py fsdp_auto_wrap_policy"});
    }
    if (m_shape.checkpointsSegments())
        notes.push_back({"a checkpoint of several blocks is torch.utils.checkpoint without reentrance around several "
                         "units: the last of them is recomputed with what its backward gathers, the others run their "
                         "forward's hooks again, and are resharded",
                         Provenance::Vendor, "torch/distributed/fsdp/_runtime_utils.py _pre_forward, _post_forward"});
    if (!m_options.limitAllGathers)
        notes.push_back({"without limit_all_gathers the host runs a whole pass ahead: no unsharded parameter is "
                         "reused before its end",
                         Provenance::Assumed, "PyTorch issue 98354"});
    return notes;
}

std::int64_t Fsdp1Rules::alignment() const
{
    return m_options.useOrigParams ? kAlignment * 8 / bitsOf(m_shape.compute) : 1;
}

/// Elements of a unit's flat parameter, or of its trainable tensors only. With use_orig_params every tensor begins on a
/// multiple of 16 bytes in the compute dtype and the whole is padded to a multiple of the process group. Packed weights
/// count in elements of the dtype that they are stored in (bnb_4bit_quant_storage).
std::int64_t Fsdp1Rules::flatNumel(const UnitType& type, bool trainableOnly) const
{
    const bool aligned = m_options.useOrigParams;
    const std::int64_t alignment = this->alignment();
    const DType packedIn = aligned ? m_shape.trained : m_shape.frozen;
    std::int64_t total = 0;
    for (const ParameterSpec* parameter : type.parameters) {
        if (trainableOnly && !parameter->trainable)
            continue;
        std::int64_t numel = parameter->numel;
        if (const auto packed = packedDtype(type, *parameter))
            numel = ceilDivide(checkedMultiply(numel, bitsOf(*packed)), bitsOf(packedIn));
        const std::int64_t others = checkedMultiply(roundUp(numel, alignment), parameter->repeat - 1);
        total = checkedAdd(checkedAdd(roundUp(total, alignment), others), numel);
    }
    return aligned ? roundUp(total, m_processGroup) : total;
}

FsdpRules::Kept Fsdp1Rules::defineUnit(std::size_t index)
{
    const UnitType& type = m_shape.units.types[index];
    const std::int64_t ranks = m_shape.shardRanks;
    Fsdp1Unit unit;
    unit.trains = type.trainable > 0;
    // With use_orig_params one flat parameter may mix frozen and trainable tensors: its gradient then has its whole
    // size, while the optimizer sees views of the trainable ones. Without it FSDP refuses the mix (flat_param "requires
    // uniform requires_grad"), and PEFT's fsdp_auto_wrap_policy gives the trainable ones flat parameters of their own,
    // which are counted here within the unit.
    const bool mixed = unit.trains && type.trainable < type.numel;
    const std::int64_t flat = flatNumel(type, false);
    const std::int64_t trainableFlat = flatNumel(type, true);
    const std::int64_t gradientFlat = !unit.trains ? 0 : m_options.useOrigParams ? flat : trainableFlat;
    const std::int64_t shard = ceilDivide(flat, ranks);
    const std::int64_t gradientShard = ceilDivide(gradientFlat, ranks);
    const std::int64_t stepped = ceilDivide(mixed ? trainableFlat : gradientFlat, ranks);
    unit.padded = m_shape.sharded() && gradientFlat % ranks != 0;
    // Accelerate upcasts flat parameters that require a gradient.
    const std::int64_t upcast = std::min(shard, gradientShard);
    const Bytes stored = bytesOf(upcast, m_shape.trained) + bytesOf(shard - upcast, m_shape.frozen);
    unit.casts =
        (upcast > 0 && m_shape.trained != m_shape.compute) || (upcast < shard && m_shape.frozen != m_shape.compute);

    const DType compute = m_shape.compute;
    const DType reduce = m_shape.reduce;
    const bool offload = m_options.offloadParams;
    // shardrun has no pinned allocator that rounds.
    const bool rounds = m_shape.training.implementation != Implementation::Shardrun;
    const auto pinned = [rounds](Bytes bytes) {
        return bytes == Bytes(0) || !rounds ? bytes : Bytes(nextPowerOfTwo(bytes.count()));
    };
    const auto add = [&](const BufferSpec& spec, Bytes bytes) {
        return m_sizes.addBuffer(spec, bytes, type.layerType);
    };
    const Bytes whole = bytesOf(checkedMultiply(shard, ranks), compute);
    const Bytes reduced = bytesOf(gradientShard, reduce);
    const Bytes reducedWhole = bytesOf(checkedMultiply(gradientShard, ranks), reduce);
    const Bytes gradient = bytesOf(gradientShard, m_shape.trained);
    unit.persistent = add(offload ? kHostShard : kShard, offload ? pinned(stored) : stored);
    unit.moments = add(offload ? kHostMoments : kMoments, stateBytes(stepped));
    unit.hostGradient = add(kHostGradient, pinned(gradient));
    unit.upload = add(kUpload, stored);
    unit.lowPrecision = add(kLowPrecisionShard, bytesOf(shard, compute));
    unit.unsharded = add(kUnsharded, whole);
    unit.zeroGradient = add(kZeroGradient, bytesOf(std::max<std::int64_t>(0, gradientFlat - trainableFlat), compute));
    unit.flatGradient = add(kFlatGradient, bytesOf(gradientFlat, compute));
    unit.reduceCast = add(kReduceCast, bytesOf(gradientFlat, reduce));
    unit.reducePadded = add(kReducePadded, reducedWhole);
    unit.reduceOutput = add(kReduceOutput, reduced);
    unit.gradientShard = add(kGradientShard, gradient);
    unit.initModule = add(kInitModule, bytesOf(type.numel, m_shape.training.precision.load));
    unit.initFlat = add(kInitFlat, bytesOf(flat, m_shape.training.precision.load));
    unit.gather = m_sizes.addPayload({"parameters", "c x E", "flat_param _all_gather_flat_param", whole, compute});
    unit.scatter = m_sizes.addPayload({"gradients", "r x E", "runtime _reduce_grad", reducedWhole, reduce});
    unit.replicate = m_sizes.addPayload({"gradient shards", "r x E / N", "runtime _reduce_grad", reduced, reduce});
    unit.uploadCopy =
        m_sizes.addPayload({"shard to the GPU", "d x E / N", "flat_param pre_unshard", stored, m_shape.trained});
    unit.downloadCopy = m_sizes.addPayload(
        {"gradient shard to the host", "d x E / N", "runtime _offload_grad", gradient, m_shape.trained});
    defineUnitCopies(unit, gradientFlat, trainableFlat, unit.casts ? stored + bytesOf(shard, compute) : Bytes(0));
    m_units.push_back(unit);
    return {stored, gradientShard, stepped};
}

/// `flat`: elements of the unit's flat gradient.
void Fsdp1Rules::defineUnitCopies(Fsdp1Unit& unit, std::int64_t flat, std::int64_t trainableFlat, Bytes casting)
{
    const DType compute = m_shape.compute;
    const DType reduce = m_shape.reduce;
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_shape.compute});
    };
    unit.cast =
        add("shard cast to the compute dtype", "(d + c) x E / N", "flat_param _use_low_precision_shard", casting);
    const Bytes made = bytesOf(flat, compute);
    const std::int64_t zeros = std::max<std::int64_t>(0, flat - trainableFlat);
    const Bytes flattening = bytesOf(std::min(flat, trainableFlat), compute) + bytesOf(zeros, compute) * 2 + made;
    unit.flatten = add("gradients concatenated", "2 c x E", "torch split_with_sizes_backward", flattening);
    unit.flattenAdding = add("gradients concatenated and added up", "5 c x E",
                             "torch split_with_sizes_backward, AccumulateGrad", flattening + made * 3);
    // runtime _div_if_needed divides before and after the reduction.
    const std::int64_t ranks = checkedMultiply(m_shape.shardRanks, m_shape.replicas.ranks);
    const std::int64_t before = predivideFactor(ranks);
    const Bytes reduced = bytesOf(flat, reduce);
    Bytes input;
    if (reduce != compute)
        input += made + reduced;
    if (unit.padded)
        input += reduced * 2;
    if (before > 1)
        input += reduced * 2;
    unit.reduceInput =
        add("flat gradient cast, padded and divided", "c x E + r x E a copy", "runtime _reduce_grad", input);
    const std::int64_t shard = ceilDivide(flat, m_shape.shardRanks);
    const Bytes reducedShard = bytesOf(shard, reduce);
    const Bytes kept = bytesOf(shard, m_shape.trained);
    Bytes settled;
    if (ranks / before > 1)
        settled += reducedShard * 2;
    if (reduce != m_shape.trained)
        settled += reducedShard + kept;
    unit.settle = add("gradient shard divided and cast", "(3 r + d) x E / N", "runtime _reduce_grad", settled);
    unit.settleAdding = add("gradient shard divided, cast and added up", "(3 r + 4 d) x E / N",
                            "runtime _accumulate_sharded_grad", settled + kept * 3);
}

std::vector<std::string> fsdp1Refusals(const PlanInput& input)
{
    const auto& options = std::get<Fsdp1Options>(input.strategy.options);
    std::vector<std::string> reasons;
    if (hybrid(options) && options.shardGroup > 0 && input.ranks() % options.shardGroup != 0)
        reasons.push_back(fmt::format("{} ranks cannot be divided into shard groups of {} ({})", input.ranks(),
                                      options.shardGroup, nameOf(options.sharding)));
    if (options.offloadParams && input.training.gradientAccumulation > 1 && !options.noSync)
        reasons.push_back(
            "FSDP1 with CPUOffload cannot accumulate gradients outside no_sync(): each micro-step overwrites the "
            "gradient on the host (torch.distributed.fsdp documentation, limitations)");
    if (options.cpuRamEfficientLoading && !options.syncModuleStates)
        reasons.push_back("fsdp_cpu_ram_efficient_loading needs fsdp_sync_module_states: the other ranks would train "
                          "on uninitialised weights (Accelerate raises ValueError)");
    return reasons;
}

std::unique_ptr<FrameworkRules> makeFsdp1Rules(const PlanInput& input)
{
    return std::make_unique<Fsdp1Rules>(input);
}

} // namespace shardwright
