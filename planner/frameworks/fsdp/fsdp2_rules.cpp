// Sizes and options of FSDP2. Sources: torch/distributed/fsdp/_fully_shard/ of PyTorch 2.15: _fully_shard.py,
// _fsdp_init.py, _fsdp_param.py ("param"), _fsdp_collectives.py ("collectives"), _fsdp_param_group.py ("param_group");
// Accelerate 1.15 utils/fsdp_utils.py for what it adds (upcast, units).

#include "planner/frameworks/fsdp/fsdp2_rules.hpp"

#include <algorithm>

#include <fmt/compile.h>

#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr BufferSpec kShard{"sharded parameters of a unit",
                            "d x sum of ceil(dim0/N) x rest",
                            "param _init_sharded_param",
                            C::Parameters,
                            Place::Gpu,
                            S::Compute,
                            L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of a unit's shard",
                              "moments x d x shard",
                              "torch.optim",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kShardCast{"shard cast to the compute dtype", "c x shard", "collectives foreach_all_gather",
                                C::CommunicationBuffers,           Place::Gpu,  S::AllGather};
constexpr BufferSpec kShardUpload{
    "shard copied from the host", "d x shard", "param all_gather_inputs, CPUOffloadPolicy",
    C::CommunicationBuffers,      Place::Gpu,  S::AllGather};
constexpr BufferSpec kGathered{"all-gather output of a unit", "c x shard x N", "collectives foreach_all_gather",
                               C::CommunicationBuffers,       Place::Gpu,      S::AllGather};
constexpr BufferSpec kUnsharded{"unsharded parameters of a unit", "c x shard x N",
                                "collectives foreach_all_gather_copy_out", C::GatheredParameters};
constexpr BufferSpec kPostForward{"parameters resharded to fewer ranks after forward", "c x shard x N / m",
                                  "param to_sharded_post_forward", C::GatheredParameters};
constexpr BufferSpec kAccumulated{"unsharded gradient of a module accumulated without reduction", "r x numel",
                                  "param_group _set_unsharded_grad_dtypes", C::Gradients};
constexpr BufferSpec kReduceInput{"reduce-scatter input of a unit", "r x shard x N", "collectives foreach_reduce",
                                  C::CommunicationBuffers};
constexpr BufferSpec kReduceOutput{"reduce-scatter output of a unit", "r x shard", "collectives foreach_reduce",
                                   C::CommunicationBuffers,           Place::Gpu,  S::Reduce};
constexpr BufferSpec kGradientShard{
    "sharded gradients of a unit", "d x shard", "collectives foreach_reduce", C::Gradients, Place::Gpu, S::Reduce};
constexpr BufferSpec kHostShard{"sharded parameters in host memory",
                                "d x shard, each tensor rounded up to a power of two when pinned",
                                "param offload_to_cpu; CachingHostAllocatorImpl PowerOf2Ceil",
                                C::Parameters,
                                Place::HostPinned,
                                S::Host,
                                L::Persistent};
constexpr BufferSpec kHostGradient{"sharded gradients in host memory",
                                   "d x shard, each tensor rounded up to a power of two when pinned",
                                   "collectives foreach_reduce",
                                   C::Gradients,
                                   Place::HostPinned,
                                   S::Host,
                                   L::Persistent};
constexpr BufferSpec kHostMoments{"optimizer states in host memory",
                                  "moments x d x shard",
                                  "torch.optim on CPU",
                                  C::OptimizerStates,
                                  Place::HostPageable,
                                  S::Host,
                                  L::FromFirstStep};
constexpr BufferSpec kInitModule{"unsharded parameters while a unit is sharded",
                                 "d x numel; of the largest tensor where rank 0 broadcasts them one by one",
                                 "fully_shard moves managed states to the GPU; Accelerate fsdp2_load_full_state_dict",
                                 C::Temporaries};

std::int64_t shardRanksOf(const PlanInput& input)
{
    const auto& options = std::get<Fsdp2Options>(input.strategy.options);
    if (options.noShard)
        return 1;
    const std::int64_t replicate = options.replicate == 0 ? input.cluster.nodes : options.replicate;
    return input.ranks() / replicate;
}

FsdpShape shapeOf(const PlanInput& input)
{
    const auto& options = std::get<Fsdp2Options>(input.strategy.options);
    return FsdpShape(
        input,
        {options.paramDtype, options.reduceDtype, options.upcastTrainable, options.offloadParams,
         options.cpuRamEfficientLoading},
        {options.wrap, options.minNumParams, options.separateHeadUnit, input.strategy.parallelism.expert > 1},
        {options.checkpointChildren, localShape(input)});
}

} // namespace

Fsdp2Rules::Fsdp2Rules(const PlanInput& input)
    : FsdpRules(shapeOf(input)), m_options(std::get<Fsdp2Options>(input.strategy.options))
{
    resize(input);
}

void Fsdp2Rules::resize(const PlanInput& input)
{
    m_options = std::get<Fsdp2Options>(input.strategy.options);
    m_parallelism = input.strategy.parallelism;
    m_units.clear();
    m_expertRanks = std::max<std::int64_t>(1, shardRanksOf(input) / m_parallelism.expert);
    resizeShape(input, shardRanksOf(input));
    // Ranks that hold the same experts stand as far apart as there are ranks with others (dp_shard_mod_ep).
    m_experts = m_sizes.addGroup(
        {"expert shard", m_expertRanks,
         std::min(m_expertRanks, nodesOfDataRanks(input, checkedMultiply(m_expertRanks, m_parallelism.expert)))});
    for (std::size_t type = 0; type < m_units.size(); ++type)
        m_units[type].group = m_shape.units.types[type].experts ? m_experts : m_shape.shardGroup;
    const std::int64_t fewer = std::max<std::int64_t>(1, m_options.reshardGroup);
    m_fewer = m_sizes.addGroup({"reshard", fewer, nodesOfDataRanks(input, fewer)});
    m_accumulated.clear();
    for (std::size_t type = 0; type < m_shape.model.layerTypes.size(); ++type) {
        std::vector<BufferClassId> classes;
        for (const LeafModule& module : m_shape.activations.modules(static_cast<int>(type)))
            classes.push_back(
                m_sizes.addBuffer(kAccumulated, bytesOf(module.trainable, m_shape.reduce), static_cast<int>(type)));
        m_accumulated.push_back(std::move(classes));
    }
}

/// reshard_after_forward as _get_post_forward_mesh_info reads it: 1 is False, the shard group's size is True.
Reshard Fsdp2Rules::reshard() const
{
    if (!m_options.reshardAfterForward || m_options.reshardGroup == 1)
        return Reshard::Never;
    return m_options.reshardGroup > 0 && m_options.reshardGroup < m_shape.shardRanks ? Reshard::ToFewer
                                                                                     : Reshard::ToAll;
}

std::string Fsdp2Rules::structureKey() const
{
    return fmt::format(
        FMT_COMPILE("fsdp2 {} reshard{} last{} wrap{}/{} sep{} off{} fwd{} sync{} hsdp{} one{} ram{} p{} r{} "
                    "d{}/{} child{} {} {}"),
        m_shape.model.id, static_cast<int>(reshard()), m_options.keepLastBlock, nameOf(m_options.wrap),
        m_options.minNumParams, m_options.separateHeadUnit, m_options.offloadParams, m_options.forwardPrefetch,
        m_options.noSync, m_shape.replicas.ranks > 1, !m_shape.sharded(), m_options.cpuRamEfficientLoading,
        nameOf(m_shape.compute), nameOf(m_shape.reduce), nameOf(m_shape.trained), nameOf(m_shape.frozen),
        m_options.checkpointChildren, activationStructureKey(m_shape.training),
        parallelismKey(m_parallelism, m_shape.training));
}

double Fsdp2Rules::textbookPsi() const
{
    const double perMicroStep = !m_shape.sharded() ? 0 : reshard() != Reshard::Never ? 3 : 2;
    const double replication = !m_shape.sharded()           ? 2
                               : m_shape.replicas.ranks > 1 ? 2.0 / static_cast<double>(m_shape.shardRanks)
                                                            : 0;
    const auto microSteps = static_cast<double>(m_shape.training.gradientAccumulation);
    if (m_shape.pipelined()) // one gather a forward where it is resharded, one for the backwards, one reduction
        return m_shape.sharded() ? (reshard() == Reshard::Never ? 2 : microSteps + 2) + replication : replication;
    return perMicroStep * microSteps + replication;
}

std::string Fsdp2Rules::psiDifference() const
{
    std::string why;
    const auto say = [&why](std::string_view reason) { why += (why.empty() ? "" : "; ") + std::string(reason); };
    if (m_shape.sharded() && reshard() != Reshard::Never)
        say("units that are not resharded after forward (root, final norm and head) skip their second all-gather");
    if (m_shape.pipelined()) {
        if (reshard() != Reshard::Never)
            say("parameters stay gathered behind a micro-batch's backward, so that a forward after it gathers nothing");
    } else if (m_shape.training.gradientAccumulation > 1)
        say(m_options.noSync ? "no_sync reduces only in the last micro-step"
                             : "every micro-step reduces, the all-reduce between replicas included");
    if (m_shape.model.trainableParameters() < m_shape.model.parameters())
        say("frozen parameters are gathered but have no gradients to reduce");
    say("shards are padded: dimension 0 of every parameter to a multiple of the shard group");
    return why;
}

std::vector<Note> Fsdp2Rules::assumptions() const
{
    std::vector<Note> notes;
    if (m_shape.checkpointsSegments())
        notes.push_back({"a checkpoint of several blocks is torch.utils.checkpoint without reentrance around several "
                         "units, which stay unsharded from their recomputation to their backward (PyTorch 2.10 on)",
                         Provenance::Vendor, "github.com/pytorch/pytorch/pull/164009"});
    if (m_shape.pipelined() && reshard() != Reshard::Never)
        notes.push_back(
            {"parameters are resharded after every forward (fsdp_reshard_after_forward always); torchtitan's "
             "own default in a pipeline is not to",
             Provenance::Vendor, "torchtitan parallelize: get_fsdp_reshard_after_forward_policy"});
    constexpr std::int64_t kActiveChunks = 3; // schedules.py _add_unshard_reshard max_active_stages
    if (m_shape.pipelined() && m_parallelism.virtualStages > kActiveChunks)
        notes.push_back({"all chunks of a stage stay gathered, as in PipelineScheduleMulti; newer runtimes of PyTorch "
                         "keep three and gather the others again",
                         Provenance::Assumed, "torch/distributed/pipelining/schedules.py"});
    if (m_options.checkpointChildren)
        notes.push_back({"the children of a block are recomputed together, as its recomputation would be; child by "
                         "child is less",
                         Provenance::Assumed, "Accelerate fsdp2_apply_ac"});
    return notes;
}

/// torchtitan shards a block's experts over the ranks that hold the same ones.
std::int64_t Fsdp2Rules::ranksOf(const UnitType& type) const
{
    return type.experts ? m_expertRanks : m_shape.shardRanks;
}

/// fully_shard pads dimension 0 of every parameter to a multiple of N.
std::int64_t Fsdp2Rules::shardOf(const UnitType& type, const ParameterSpec& parameter) const
{
    const std::int64_t rows = parameter.shape.empty() ? 1 : parameter.shape[0];
    const std::int64_t rest = parameter.numel / std::max<std::int64_t>(1, rows);
    return checkedMultiply(ceilDivide(rows, ranksOf(type)), rest);
}

DType Fsdp2Rules::storedIn(const UnitType& type, const ParameterSpec& parameter) const
{
    return parameter.trainable ? m_shape.trained : packedDtype(type, parameter).value_or(m_shape.frozen);
}

/// Packed weights travel packed: to torch they are tensors of bnb_4bit_quant_storage.
DType Fsdp2Rules::gatheredIn(const UnitType& type, const ParameterSpec& parameter) const
{
    return packedDtype(type, parameter).value_or(m_shape.compute);
}

FsdpRules::Kept Fsdp2Rules::defineUnit(std::size_t index)
{
    const UnitType& type = m_shape.units.types[index];
    Fsdp2Unit unit;
    Kept kept;
    Bytes host;
    Bytes hostGradients;
    Bytes whole;
    Bytes largestWhole;
    // shardrun has no pinned allocator that rounds.
    const bool rounds = m_options.pinMemory && m_shape.training.implementation != Implementation::Shardrun;
    const auto pinned = [rounds](Bytes exact) { return rounds ? Bytes(nextPowerOfTwo(exact.count())) : exact; };
    for (const ParameterSpec* parameter : type.parameters) {
        const std::int64_t one = shardOf(type, *parameter);
        const std::int64_t all = checkedMultiply(one, parameter->repeat);
        const DType stored = storedIn(type, *parameter);
        kept.parameters += bytesOf(all, stored);
        whole += bytesOf(checkedMultiply(parameter->numel, parameter->repeat), stored);
        largestWhole = std::max(largestWhole, bytesOf(parameter->numel, stored));
        if (parameter->trainable)
            kept.gradients = checkedAdd(kept.gradients, all);
        if (!m_options.offloadParams)
            continue;
        host += pinned(bytesOf(one, stored)) * parameter->repeat;
        if (parameter->trainable)
            hostGradients += pinned(bytesOf(one, stored)) * parameter->repeat;
    }
    kept.stepped = kept.gradients;
    unit.trainable = kept.gradients;
    unit.ranks = ranksOf(type);
    const int layer = type.layerType;
    const bool offload = m_options.offloadParams;
    unit.persistent = m_sizes.addBuffer(offload ? kHostShard : kShard, offload ? host : kept.parameters, layer);
    unit.moments = m_sizes.addBuffer(offload ? kHostMoments : kMoments, stateBytes(kept.stepped), layer);
    unit.hostGradient = m_sizes.addBuffer(kHostGradient, hostGradients, layer);
    unit.init = m_sizes.addBuffer(kInitModule, m_options.cpuRamEfficientLoading ? largestWhole : whole, layer);
    unit.uploadCopy = m_sizes.addPayload(
        {"shard to the GPU", "d x shard", "param all_gather_inputs", kept.parameters, m_shape.trained});
    defineUnitCommunication(type, unit);
    m_units.push_back(unit);
    return kept;
}

void Fsdp2Rules::defineUnitCommunication(const UnitType& type, Fsdp2Unit& unit)
{
    const DType compute = m_shape.compute;
    const int layer = type.layerType;
    Bytes whole;
    Bytes stored;
    Bytes cast; // a frozen shard that is stored in the compute dtype is gathered as it is
    Bytes storedToCast;
    Bytes largestStored;
    Bytes largestCast;
    for (const ParameterSpec* parameter : type.parameters) {
        const std::int64_t one = shardOf(type, *parameter);
        const DType dtype = storedIn(type, *parameter);
        stored += bytesOf(one, dtype) * parameter->repeat;
        largestStored = std::max(largestStored, bytesOf(one, dtype));
        const DType gathered = gatheredIn(type, *parameter);
        whole += bytesOf(checkedMultiply(one, unit.ranks), gathered) * parameter->repeat;
        if (dtype == gathered)
            continue;
        cast += bytesOf(one, compute) * parameter->repeat;
        storedToCast += bytesOf(one, dtype) * parameter->repeat;
        largestCast = std::max(largestCast, bytesOf(one, compute));
    }
    // Shards are copied and cast one by one: a copy lives on only where no cast replaces it. A single rank copies each
    // parameter straight into its unsharded place. shardrun copies a unit's shards at once.
    const bool single = !unit.sharded();
    const bool oneByOne = (single || casts()) && m_shape.training.implementation != Implementation::Shardrun;
    unit.upload = m_sizes.addBuffer(kShardUpload, oneByOne ? largestStored : stored, layer);
    unit.cast = m_sizes.addBuffer(kShardCast, single ? largestCast : cast, layer);
    const std::int64_t fewer = std::max<std::int64_t>(1, m_options.reshardGroup);
    unit.gathered = m_sizes.addBuffer(kGathered, whole, layer);
    unit.unsharded = m_sizes.addBuffer(kUnsharded, whole, layer);
    unit.postForward = m_sizes.addBuffer(kPostForward, share(whole, 1, fewer), layer);
    const bool foreachCopy = casts() && !m_options.offloadParams; // collectives use_foreach_copy
    unit.postForwardCast = m_sizes.addBuffer(kShardCast, foreachCopy ? share(whole, 1, fewer) : Bytes(0), layer);
    const Bytes reduced = bytesOf(unit.trainable, m_shape.reduce);
    const Bytes reducedWhole = bytesOf(checkedMultiply(unit.trainable, unit.ranks), m_shape.reduce);
    unit.reduceInput = m_sizes.addBuffer(kReduceInput, reducedWhole, layer);
    unit.reduceOutput = m_sizes.addBuffer(kReduceOutput, reduced, layer);
    unit.gradientShard = m_sizes.addBuffer(kGradientShard, bytesOf(unit.trainable, m_shape.trained), layer);
    unit.gather = m_sizes.addPayload({"parameters", "c x shard x N", "collectives foreach_all_gather", whole, compute});
    unit.scatter =
        m_sizes.addPayload({"gradients", "r x shard x N", "collectives foreach_reduce", reducedWhole, m_shape.reduce});
    unit.replicate =
        m_sizes.addPayload({"gradient shards", "r x shard", "collectives foreach_reduce", reduced, m_shape.reduce});
    unit.downloadCopy = m_sizes.addPayload({"gradient shard to the host", "d x shard", "collectives foreach_reduce",
                                            bytesOf(unit.trainable, m_shape.trained), m_shape.trained});
    defineUnitCopies(unit, {whole, stored, storedToCast + cast, reduced, reducedWhole});
}

void Fsdp2Rules::defineUnitCopies(Fsdp2Unit& unit, const UnitBytes& bytes)
{
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_shape.compute});
    };
    const Bytes shard = share(bytes.whole, 1, unit.ranks);
    // A shard that is cast is read in its own dtype and written in the gathered one; then every shard is copied to its
    // place in the all-gather's output.
    unit.copyIn = add("shards cast and copied in", "(d + 3 c) x shard", "collectives all_gather_copy_in",
                      bytes.casting + shard * 2);
    const Bytes fewer = share(bytes.whole, 1, std::max<std::int64_t>(1, m_options.reshardGroup));
    unit.copyInFromFewer =
        add("shards over fewer ranks copied in", "2 c x shard x N / m", "collectives all_gather_copy_in", fewer * 2);
    unit.copyOut =
        add("gathered parameters copied out", "2 c x shard x N", "collectives split_with_sizes_copy", bytes.whole * 2);
    unit.toFewer = add("parameters resharded to fewer ranks", "2 c x shard x N / m",
                       "param to_sharded_post_forward: clone", fewer * 2);
    unit.copyWhole = add("parameters cast and copied", "(d + c) x numel", "param_group wait_for_unshard, one rank",
                         bytes.stored + bytes.whole);
    const Bytes gradients = bytesOf(checkedMultiply(unit.trainable, unit.ranks), m_shape.compute);
    unit.widen = add("gradients cast to the reduce dtype", "(c + r) x numel", "param to_accumulated_grad_if_needed",
                     gradients + bytes.reducedWhole);
    unit.reduceCopyIn = add("gradients copied in", "(c + r) x shard x N", "collectives foreach_reduce_scatter_copy_in",
                            gradients + bytes.reducedWhole);
    unit.reduceAlone =
        add("gradients copied on a single rank", "2 r x shard", "collectives foreach_reduce", bytes.reduced * 2);
    const Bytes kept = bytesOf(unit.trainable, m_shape.trained);
    const Bytes cast = m_shape.reduce == m_shape.trained ? Bytes(0) : bytes.reduced + kept;
    unit.settle = add("gradient shards cast", "(r + d) x shard", "collectives foreach_reduce", cast);
    unit.settleAdding =
        add("gradient shards cast and added up", "(r + 4 d) x shard", "collectives foreach_reduce", cast + kept * 3);
}

std::vector<Note> Fsdp2Rules::excluded() const
{
    std::vector<Note> notes = FsdpRules::excluded();
    if (m_parallelism.expert > 1)
        notes.push_back({"expert parallelism: the counts of tokens that ranks exchange first and for which the host "
                         "waits, and the padding of each expert's tokens",
                         Provenance::Assumed, "torchtitan/distributed/expert_parallel.py"});
    return notes;
}

int Fsdp2Rules::communicators() const
{
    return FsdpRules::communicators() + (m_parallelism.expert > 1 ? 1 : 0) +
           (m_parallelism.expert > 1 && m_expertRanks > 1 ? 1 : 0);
}

std::vector<std::string> fsdp2Refusals(const PlanInput& input)
{
    const auto& options = std::get<Fsdp2Options>(input.strategy.options);
    std::vector<std::string> reasons;
    const std::int64_t ranks = input.ranks();
    const std::int64_t replicate = options.replicate == 0 ? input.cluster.nodes : options.replicate;
    if (ranks % replicate != 0)
        reasons.push_back(
            fmt::format("{} ranks cannot be laid out as {} replicas of equal shard groups", ranks, replicate));
    else if (options.reshardGroup > 0 && shardRanksOf(input) % options.reshardGroup != 0)
        reasons.push_back(fmt::format("reshard_after_forward={} does not divide the shard group of {}",
                                      options.reshardGroup, shardRanksOf(input)));
    else if (shardRanksOf(input) % input.strategy.parallelism.expert != 0)
        reasons.push_back(fmt::format("{} expert-parallel ranks do not divide the shard group of {}",
                                      input.strategy.parallelism.expert, shardRanksOf(input)));
    return reasons;
}

std::unique_ptr<FrameworkRules> makeFsdp2Rules(const PlanInput& input)
{
    return std::make_unique<Fsdp2Rules>(input);
}

} // namespace shardwright
