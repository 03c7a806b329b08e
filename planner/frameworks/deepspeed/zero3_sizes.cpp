// Sizes of ZeRO-3: states and the step. Gathers and reductions are in zero3_communication.cpp, host and NVMe in
// zero3_offload.cpp.

#include <algorithm>
#include <iterator>

#include <fmt/compile.h>

#include "planner/frameworks/deepspeed/zero3.hpp"
#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

// stage3.py has_overflow_partitioned_grads_serial: isinf, isnan and their disjunction over the whole gradient, a byte
// each.
constexpr std::int64_t kOverflowBytes = 3;
constexpr std::int64_t kNormChunk = 250000000; // stage3.py _constant_buffered_norm2: elements taken to double at once

constexpr BufferSpec kWholeModule{"whole module before it is partitioned", "d P",
                                  "engine _configure_distributed_model: module.to(device)", C::Temporaries};
constexpr BufferSpec kLargestTensor{"largest parameter before it is partitioned", "d p",
                                    "partition_parameters.py Init _post_init_method", C::Temporaries};
constexpr BufferSpec kShards{"parameter shards",
                             "d x sum of ceil(numel/N)",
                             "stage3.py lp_param_buffer; partition_parameters.py _padding_size",
                             C::Parameters,
                             Place::Gpu,
                             S::Compute,
                             L::Persistent};
constexpr BufferSpec kFrozenShards{"shards of frozen parameters",
                                   "d x sum of ceil(numel/N)",
                                   "partition_parameters.py ds_tensor",
                                   C::Parameters,
                                   Place::Gpu,
                                   S::Compute,
                                   L::Persistent};
constexpr BufferSpec kMaster{"master shards",     "4 B x shard", "stage3.py fp32_partitioned_groups_flat",
                             C::MasterParameters, Place::Gpu,    S::Compute,
                             L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of the shards",
                              "moments x 4 B x shard",
                              "ops/adam/fused_adam.py",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kGradientShards{
    "gradient shards", "a x shard", "stage3.py grad_partitions_flat_buffer, made at initialisation",
    C::Gradients,      Place::Gpu,  S::Compute,
    L::Persistent};
constexpr BufferSpec kBucket{"reduction bucket",
                             "d x reduce_bucket_size",
                             "stage3.py ipg_buckets, made at initialisation",
                             C::CommunicationBuffers,
                             Place::Gpu,
                             S::Compute,
                             L::Persistent};
constexpr BufferSpec kPersistent{"persistent parameters, gathered",
                                 "d x parameters of at most param_persistence_threshold elements",
                                 "zero/parameter_offload.py mark_persistent_parameters",
                                 C::GatheredParameters,
                                 Place::Gpu,
                                 S::AllGather,
                                 L::Persistent};
constexpr BufferSpec kFlatSubGroup{"flattened gradient of a sub-group", "a x sub-group",
                                   "stage3.py _prepare_fp32_grad_for_sub_group", C::Temporaries};
constexpr BufferSpec kWideSubGroup{"fp32 gradient of a sub-group", "4 B x sub-group",
                                   "stage3.py _prepare_fp32_grad_for_sub_group", C::Temporaries};
constexpr BufferSpec kWideGradients{"fp32 gradients of the sub-groups stepped on the GPU",
                                    "4 B x sub-groups",
                                    "stage3.py initialize_optimizer_states: subgroup_to_device",
                                    C::Gradients,
                                    Place::Gpu,
                                    S::Compute,
                                    L::Persistent};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "4 B x sub-group",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};
constexpr BufferSpec kOverflow{"overflow check of the gradient shards", "3 B x shard", "stage3.py _has_inf_or_nan",
                               C::Temporaries};
constexpr BufferSpec kNorm{"a gradient shard in double precision", "8 B x largest shard",
                           "stage3.py get_grad_norm_direct", C::Temporaries};

} // namespace

Zero3Rules::Zero3Rules(const PlanInput& input) : DeepSpeedRules(input), m_order(m_activations)
{
    take(input);
    m_visits = recordVisits(m_activations, m_sizes);
    m_buckets = planBuckets(m_order, arrivalsInBackward(m_activations, m_visits), m_options.reduceBucketSize);
    m_gathers = planGathers(m_activations, m_visits, m_options, recording() == Recording::ForExecution);
    if (m_options.quantizedGradients)
        findTwoHopKinds();
    resize(input);
}

std::string Zero3Rules::structureKey() const
{
    return m_shardsKey + trainingKey();
}

std::string Zero3Rules::shardsKey() const
{
    std::string key = optionsKey() + " groups ";
    const auto append = std::back_inserter(key);
    // Sub-groups are counted in elements of a rank, so their number, and where they are stepped, can change with the
    // ranks: "g2n5h1" are two on the GPU, five from NVMe, the last one in host memory; a "p" where persistent
    // parameters go up with them.
    for (std::size_t first = 0, end = 0; first < m_subGroups.size(); first = end) {
        const SubGroup& group = m_subGroups[first];
        while (end < m_subGroups.size() && m_subGroups[end].onGpu == group.onGpu &&
               m_subGroups[end].onNvme == group.onNvme && (m_subGroups[end].persistent > 0) == (group.persistent > 0))
            ++end;
        key += group.onGpu ? 'g' : group.onNvme ? 'n' : 'h';
        if (group.persistent > 0)
            key += 'p';
        fmt::format_to(append, FMT_COMPILE("{}"), end - first);
    }
    fmt::format_to(append, FMT_COMPILE(" nothing{} kept{} hops "), gathersNothing(), m_persistentShard > 0);
    // Which tensors' gradients can be quantised depends on the ranks too.
    for (const TwoHopClasses& tensor : m_twoHops)
        key += tensor.compressed ? 'q' : 's';
    return key + ' ';
}

/// Of the training, what is neither fixed when rules are made nor a matter of tokens alone.
bool Zero3Rules::differsInTokensAlone(const PlanInput& input) const
{
    const Training& training = input.training;
    return m_sizedNodes == input.cluster.nodes && m_sizedGpusPerNode == input.cluster.gpusPerNode &&
           m_ranks == input.ranks() && m_options == std::get<DeepSpeedOptions>(input.strategy.options) &&
           m_parallelism == input.strategy.parallelism && m_training.optimizer == training.optimizer &&
           m_training.fusedOptimizer == training.fusedOptimizer && m_training.implementation == training.implementation;
}

void Zero3Rules::takeTokens(const PlanInput& input)
{
    m_training = input.training;
    m_cluster = &input.cluster;
    m_tokenSizes.clear();
    m_activations.defineSizes(m_tokenSizes, m_training); // they come first
    for (std::size_t i = 0; i < m_tokenSizes.buffers.size(); ++i)
        m_sizes.buffers[i].bytes = m_tokenSizes.buffers[i].bytes;
    for (std::size_t i = 0; i < m_tokenSizes.payloads.size(); ++i)
        m_sizes.payloads[i].bytes = m_tokenSizes.payloads[i].bytes;
}

void Zero3Rules::resize(const PlanInput& input)
{
    if (differsInTokensAlone(input)) {
        takeTokens(input);
        return;
    }
    m_sizedNodes = 0;
    take(input);
    defineGroups(input);
    m_shard = 0;
    m_largestShard = 0;
    for (const FlatTensor& tensor : m_order.tensors())
        m_shard = checkedAdd(m_shard, shardOf(tensor));
    m_largestShard = ceilDivide(m_order.largest(), m_shardRanks);
    m_frozenShard = m_frozenOnNvme = 0;
    m_ownHostBytes = Bytes(0);
    for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
        for (const ParameterSpec& parameter : m_model.layerTypes[type].parameters) {
            if (parameter.trainable)
                continue;
            const std::int64_t shard = ceilDivide(parameter.numel, m_shardRanks);
            const std::int64_t count = checkedMultiply(parameter.repeat, m_model.layersOfType(static_cast<int>(type)));
            m_frozenShard = checkedAdd(m_frozenShard, checkedMultiply(shard, count));
            const Bytes bytes = bytesOf(shard, m_dtypes.frozen);
            if (!paramOn(OffloadDevice::Nvme) || parameter.numel <= m_options.paramPersistenceThreshold)
                continue;
            if (bytes >= smallestSwap())
                m_frozenOnNvme = checkedAdd(m_frozenOnNvme, checkedMultiply(shard, count));
            else
                m_ownHostBytes += hostBytes(bytes, roundsPinned(m_options.paramPinMemory)) * count;
        }
    }
    m_persistentShard = 0;
    for (const TensorRun& run : m_gathers.persistent)
        m_persistentShard =
            checkedAdd(m_persistentShard, checkedMultiply(ceilDivide(run.numel, m_shardRanks), run.count));
    splitSubGroups();
    findHomes();
    defineStates();
    defineHost();
    defineNvme();
    defineCalls();
    defineNvmeReads();
    definePieces();
    defineGradients();
    defineFlushes();
    defineTwoHops();
    defineStep();
    m_shardsKey = shardsKey();
    m_sizedNodes = input.cluster.nodes;
    m_sizedGpusPerNode = input.cluster.gpusPerNode;
}

void Zero3Rules::defineGroups(const PlanInput& input)
{
    const Cluster& cluster = input.cluster;
    const std::int64_t mics = m_options.micsShardSize;
    m_shardRanks = mics > 0 ? mics : m_ranks;
    m_shardGroup = mics > 0 ? m_sizes.addGroup({"shard", mics, nodesOfConsecutive(cluster, mics)}) : m_world;
    m_replicaGroup = m_sizes.addGroup(replicaGroup(cluster, m_shardRanks));
    const std::int64_t secondary = std::max<std::int64_t>(1, m_options.hpzPartitionSize);
    m_secondaryGroup = m_sizes.addGroup({"secondary", secondary, nodesOfConsecutive(cluster, secondary)});
    // utils/groups.py _get_local_all_to_all_group: the ranks of a node, and those of equal place on all nodes
    m_insideGroup = m_sizes.addGroup({"node", cluster.gpusPerNode, 1});
    m_betweenGroup = m_sizes.addGroup({"across nodes", cluster.nodes, cluster.nodes, cluster.gpusPerNode});
}

/// stage3.py _create_fp16_sub_groups: parameters in order until a group holds at least sub_group_size elements of the
/// rank.
void Zero3Rules::splitSubGroups()
{
    m_subGroups.clear();
    const std::vector<FlatTensor>& tensors = m_order.tensors();
    const auto close = [&](std::int64_t elements, std::size_t end) {
        SubGroup group;
        group.elements = elements;
        group.firstTensor = m_subGroups.empty() ? 0 : m_subGroups.back().endTensor;
        group.endTensor = end;
        m_subGroups.push_back(group);
    };
    if (m_shard <= m_options.subGroupSize) {
        close(m_shard, tensors.size());
    } else {
        std::int64_t elements = 0;
        for (std::size_t i = 0; i < tensors.size(); ++i) {
            elements = checkedAdd(elements, shardOf(tensors[i]));
            if (elements >= m_options.subGroupSize)
                close(std::exchange(elements, 0), i + 1);
        }
        if (elements > 0)
            close(elements, tensors.size());
    }
    const auto count = static_cast<double>(m_subGroups.size());
    const auto onGpu =
        offloadsOptimizer() ? static_cast<std::size_t>((1.0 - m_options.offloadRatio) * count) : m_subGroups.size();
    // swap_tensor/optimizer_utils.py swappable_tensor: small sub-groups stay in host memory.
    for (std::size_t i = 0; i < m_subGroups.size(); ++i) {
        SubGroup& group = m_subGroups[i];
        group.onGpu = i < onGpu;
        group.onNvme = optimizerOn(OffloadDevice::Nvme) && !group.onGpu &&
                       bytesOf(group.elements, m_dtypes.master) >= smallestSwap();
    }
}

std::int64_t Zero3Rules::onHostElements() const
{
    std::int64_t elements = 0;
    for (const SubGroup& group : m_subGroups)
        if (!group.onGpu && !group.onNvme)
            elements = checkedAdd(elements, group.elements);
    return elements;
}

bool Zero3Rules::steppedOnGpu(const FlatTensor& tensor) const
{
    const auto first =
        std::find_if(m_subGroups.begin(), m_subGroups.end(), [](const SubGroup& group) { return !group.onGpu; });
    return first == m_subGroups.end() || tensor.offset < m_order.tensors()[first->firstTensor].offset;
}

std::int64_t Zero3Rules::offloadedElements() const
{
    std::int64_t elements = 0;
    for (const SubGroup& group : m_subGroups)
        if (!group.onGpu)
            elements = checkedAdd(elements, group.elements);
    return elements;
}

void Zero3Rules::defineStates()
{
    const Bytes trainable = bytesOf(m_order.elements(), m_dtypes.model);
    const Bytes whole = trainable + bytesOf(frozenParameters(), m_dtypes.frozen);
    m_wholeModule = m_sizes.addBuffer(kWholeModule, m_options.zero3Init ? Bytes(0) : whole);
    m_largestTensor = m_sizes.addBuffer(
        kLargestTensor, m_options.zero3Init ? bytesOf(m_model.largestTensor(), m_dtypes.model) : Bytes(0));
    const bool paramsHere = paramOn(OffloadDevice::None);
    // Shards of persistent parameters stay on the GPU under offload_param too.
    m_shards = m_sizes.addBuffer(kShards, bytesOf(paramsHere ? m_shard : m_persistentShard, m_dtypes.model));
    m_frozenShards = m_sizes.addBuffer(kFrozenShards, paramsHere ? bytesOf(m_frozenShard, m_dtypes.frozen) : Bytes(0));
    m_master = m_sizes.addBuffer(kMaster, bytesOf(onGpuElements(), m_dtypes.master));
    m_moments = m_sizes.addBuffer(kMoments, stateBytes(onGpuElements()));
    m_gradientShards =
        m_sizes.addBuffer(kGradientShards, offloadsOptimizer() ? Bytes(0) : bytesOf(m_shard, m_dtypes.accumulate));
    m_wideGradients =
        m_sizes.addBuffer(kWideGradients, offloadsOptimizer() ? bytesOf(onGpuElements(), m_dtypes.master) : Bytes(0));
    m_bucket = m_sizes.addBuffer(
        kBucket, m_options.contiguousGradients ? bytesOf(m_options.reduceBucketSize, m_dtypes.model) : Bytes(0));
    m_persistent =
        m_sizes.addBuffer(kPersistent, gathersNothing() ? Bytes(0) : paddedBytes(m_gathers.persistent, m_shardRanks));
    m_persistentGather = m_sizes.addPayload({"persistent parameters", "d x persistent",
                                             "stage3.py _post_step: persistent_parameters[0].all_gather",
                                             paddedBytes(m_gathers.persistent, m_shardRanks), m_dtypes.model});
}

void Zero3Rules::defineStep()
{
    m_overflow = m_sizes.addBuffer(
        kOverflow, Bytes(checksOverflow() && !offloadsOptimizer() ? checkedMultiply(m_shard, kOverflowBytes) : 0));
    m_norm =
        m_sizes.addBuffer(kNorm, Bytes(normsInDouble() ? checkedMultiply(8, std::min(m_largestShard, kNormChunk)) : 0));
    const bool casts = m_dtypes.accumulate != m_dtypes.master;
    // isinf and isnan read the gradient and write a mask each, their disjunction and its reduction read three and write
    // one; the norm is taken of a copy in double precision.
    const std::int64_t accumulated = bitsOf(m_dtypes.accumulate) / 8;
    const std::int64_t checking = checksOverflow() ? 2 * (accumulated + 1) + 4 : 0;
    const std::int64_t norming = accumulated + 2 * 8;
    m_check = m_sizes.addPayload({"overflow check and norm of the gradients", "(2 a + 6 + a + 16) B x shard",
                                  "stage3.py has_overflow, get_grad_norm_direct",
                                  offloadsOptimizer() ? Bytes(0) : Bytes(checkedMultiply(m_shard, checking + norming)),
                                  m_dtypes.accumulate});
    for (SubGroup& group : m_subGroups) {
        const bool flattens = !offloadsOptimizer(); // with it the gradients arrive flat and in fp32
        group.flat =
            m_sizes.addBuffer(kFlatSubGroup, flattens ? bytesOf(group.elements, m_dtypes.accumulate) : Bytes(0));
        group.wide =
            m_sizes.addBuffer(kWideSubGroup, flattens && casts ? bytesOf(group.elements, m_dtypes.master) : Bytes(0));
        group.foreach = m_sizes.addBuffer(kForeach, group.onGpu && foreachTemporaries(m_training)
                                                        ? bytesOf(group.elements, m_dtypes.states)
                                                        : Bytes(0));
        group.parametersUp = m_sizes.addPayload({"updated shards to the GPU", "d x sub-group",
                                                 "stage3.py _reassign_or_swap_out_partitioned_parameters",
                                                 bytesOf(group.elements, m_dtypes.model), m_dtypes.model});
        const Bytes states = bytesOf(group.elements, m_dtypes.master) + stateBytes(group.elements);
        const Bytes narrow = bytesOf(group.elements, m_dtypes.accumulate);
        const Bytes master = bytesOf(group.elements, m_dtypes.master);
        // Flattened, cast, and divided by the loss scale and the clipping factor together.
        group.prepare = m_sizes.addPayload({"gradient flattened, cast and unscaled", "(3 a + 12) B x sub-group",
                                            "stage3.py _prepare_fp32_grad_for_sub_group, unscale_and_clip_grads",
                                            (flattens ? narrow * 2 + (casts ? narrow + master : Bytes(0)) : Bytes(0)) +
                                                (group.onGpu ? master * 2 : Bytes(0)),
                                            m_dtypes.master});
        // DeepSpeedCPUAdam is one pass too; the host unscales before it and narrows the parameters after it.
        group.step = m_sizes.addPayload(
            {"optimizer step", "accesses x sub-group + 6 B x sub-group", "ops/adam; stage3.py _optimizer_step",
             optimizerStepBytes(m_training.optimizer,
                                group.onGpu ? torchOptimizerForm(m_training) : OptimizerForm::Fused, group.elements,
                                {m_dtypes.master, m_dtypes.master, m_dtypes.states}) +
                 master + bytesOf(group.elements, m_dtypes.model) + (group.onGpu ? Bytes(0) : master * 2),
             m_dtypes.master});
        group.stateRead = m_sizes.addPayload({"master, moments and gradient from NVMe", "(4 + 8 + 4) B x sub-group",
                                              "runtime/swap_tensor/partitioned_optimizer_swapper.py",
                                              states + bytesOf(group.elements, m_dtypes.master), m_dtypes.master});
        group.stateWrite =
            m_sizes.addPayload({"master and moments to NVMe", "(4 + 8) B x sub-group",
                                "runtime/swap_tensor/partitioned_optimizer_swapper.py", states, m_dtypes.master});
    }
    definePersistentUp();
    if (executes())
        stepAtOnce();
}

/// stage3.py _reassign_or_swap_out_partitioned_parameters: each sub-group's new parameters go to where they are kept,
/// those of persistent parameters from the master weights in host memory, or in a swap buffer, to the GPU. Where
/// tensors have no names, all of them count with the last sub-group.
void Zero3Rules::definePersistentUp()
{
    for (SubGroup& group : m_subGroups) {
        group.persistent = 0;
        const std::vector<std::int32_t>& persistent = m_gathers.persistentTensors;
        for (std::size_t i = group.firstTensor; i < group.endTensor && executes(); ++i) {
            const FlatTensor& tensor = m_order.tensors()[i];
            if (std::find(persistent.begin(), persistent.end(), tensor.tensor) != persistent.end())
                group.persistent = checkedAdd(group.persistent, shardOf(tensor));
        }
        if (group.onGpu)
            group.persistent = 0;
    }
    SubGroup& last = m_subGroups.back();
    if (!executes() && !last.onGpu)
        last.persistent = std::min(m_shard, m_persistentShard);
    for (SubGroup& group : m_subGroups) {
        if (paramOn(OffloadDevice::None))
            group.persistent = 0;
        group.persistentUp =
            m_sizes.addPayload({"updated shards of persistent parameters to the GPU", "d x persistent/N",
                                "stage3.py _reassign_or_swap_out_partitioned_parameters",
                                bytesOf(group.persistent, m_dtypes.model), m_dtypes.model});
    }
}

/// The executor steps all sub-groups in host memory as one, at the first of them, and so those on the GPU beside them;
/// their parameters go up, or down to host memory, with the last, the persistent ones up with the first.
void Zero3Rules::stepAtOnce()
{
    const auto bytesAt = [this](PayloadId payload) -> Bytes& {
        return m_sizes.payloads[static_cast<std::size_t>(payload)].bytes;
    };
    SubGroup* lastOnGpu = nullptr;
    for (SubGroup& group : m_subGroups) {
        if (!group.onGpu)
            continue;
        if (lastOnGpu != nullptr)
            bytesAt(group.parametersDown) += std::exchange(bytesAt(lastOnGpu->parametersDown), Bytes(0));
        lastOnGpu = &group;
    }
    for (const bool onGpu : {false, true}) {
        if (onGpu && !offloadsOptimizer())
            continue;
        SubGroup* first = nullptr;
        SubGroup* last = nullptr;
        for (SubGroup& group : m_subGroups) {
            if (group.onGpu != onGpu || group.onNvme)
                continue;
            if (last != nullptr) {
                bytesAt(group.parametersUp) += std::exchange(bytesAt(last->parametersUp), Bytes(0));
                bytesAt(first->step) += std::exchange(bytesAt(group.step), Bytes(0));
                bytesAt(first->persistentUp) += std::exchange(bytesAt(group.persistentUp), Bytes(0));
                first->persistent += std::exchange(group.persistent, 0);
            } else {
                first = &group;
            }
            last = &group;
        }
    }
}

ModelStates Zero3Rules::modelStates() const
{
    ModelStates states;
    if (executes() && !paramOn(OffloadDevice::None)) // what is measured: persistent shards stay on the device
        states.parameters = bytesOf(std::min(m_shard, m_persistentShard), m_dtypes.model);
    if (paramOn(OffloadDevice::None))
        states.parameters = bytesOf(m_shard, m_dtypes.model) + bytesOf(m_frozenShard, m_dtypes.frozen);
    states.gradients =
        offloadsOptimizer() ? bytesOf(onGpuElements(), m_dtypes.master) : bytesOf(m_shard, m_dtypes.accumulate);
    states.masterParameters = bytesOf(onGpuElements(), m_dtypes.master);
    states.optimizerStates = stateBytes(onGpuElements());
    return states;
}

int Zero3Rules::communicators() const
{
    int count = 1;
    if (m_options.hpzPartitionSize > 1)
        ++count;
    if (m_options.micsShardSize > 0)
        count += 2;
    if (m_options.quantizedGradients)
        count += 2;
    return count;
}

std::vector<Note> Zero3Rules::assumptions() const
{
    std::vector<Note> notes = DeepSpeedRules::assumptions();
    if (!m_options.zero3Init)
        notes.push_back({"the model is built outside zero.Init: torch's own linear keeps every gathered weight until "
                         "its backward",
                         Provenance::Vendor, "zero/partition_parameters.py Init patches linear on entering only"});
    else if (!m_options.memoryEfficientLinear)
        notes.push_back({"memory_efficient_linear is off: torch's own linear keeps every gathered weight until its "
                         "backward",
                         Provenance::Vendor, "zero/partition_parameters.py Init patch_init_and_builtins"});
    if (m_model.architecture.experts > 0)
        notes.push_back({"mixture-of-experts blocks are z3 leaf modules: gathered whole", Provenance::Vendor,
                         "deepspeed/utils/z3_leaf_module.py"});
    for (Note& note : twoHopNotes())
        notes.push_back(std::move(note));
    return notes;
}

std::unique_ptr<FrameworkRules> makeZero3Rules(const PlanInput& input)
{
    return std::make_unique<Zero3Rules>(input);
}

} // namespace shardwright
