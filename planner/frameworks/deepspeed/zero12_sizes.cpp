// Sizes of ZeRO-1 and ZeRO-2.

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "planner/frameworks/deepspeed/host_specs.hpp"
#include "planner/frameworks/deepspeed/zero12.hpp"
#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/overheads.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

// has_inf_or_nan makes a fp32 copy, its comparison and two masks of the largest gradient fragment: 4 + 4 + 1 + 1 + 1.
constexpr std::int64_t kOverflowBytes = 11;

constexpr BufferSpec kModule{"trainable parameters before they are flattened", "d P", "stage_1_and_2.py __init__",
                             C::Temporaries};
constexpr BufferSpec kFrozen{"frozen parameters, outside the flat buffer",
                             "d P_frozen",
                             "stage_1_and_2.py __init__: only parameters that require gradients are flattened",
                             C::Parameters,
                             Place::Gpu,
                             S::Compute,
                             L::Persistent};
constexpr BufferSpec kFlat{"flat 16-bit parameters, whole",
                           "d P, padded to a multiple of 2 N",
                           "stage_1_and_2.py bit16_groups_flat",
                           C::Parameters,
                           Place::Gpu,
                           S::Compute,
                           L::Persistent};
constexpr BufferSpec kMaster{"master partition",  "4 B x P/N", "stage_1_and_2.py single_partition_of_fp32_groups",
                             C::MasterParameters, Place::Gpu,  S::Compute,
                             L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of the partition",
                              "moments x 4 B x P/N",
                              "ops/adam/fused_adam.py: made at the first step",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kFirstGradient{"zeros for the optimizer's first step", "4 B x P/N",
                                    "stage_1_and_2.py initialize_optimizer_states", C::Temporaries};
constexpr BufferSpec kBucket{"reduction bucket", "d x reduce_bucket_size", "stage_1_and_2.py setup_buckets",
                             C::CommunicationBuffers};
constexpr BufferSpec kTouched{"gradients of the tensors that touch the partition", "d x their elements",
                              "stage_1_and_2.py grads_in_partition", C::Gradients};
constexpr BufferSpec kGradient{"gradient of a module", "d x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kLarge{"gradient larger than the bucket", "d x numel",
                            "stage_1_and_2.py extra_large_param_to_reduce", C::Gradients};
constexpr BufferSpec kAccumulated{"gradient accumulated in grad_accum_dtype", "a x numel",
                                  "stage_1_and_2.py _fill_param_grad_accum_attribute", C::Gradients};
constexpr BufferSpec kFlatten{"bucket flattened from several ranks' slices", "d x elements",
                              "stage_1_and_2.py allreduce_bucket", C::CommunicationBuffers};
constexpr BufferSpec kCast{"bucket in the communication dtype", "w x elements", "stage_1_and_2.py allreduce_bucket",
                           C::CommunicationBuffers};
constexpr BufferSpec kFlatGradient{"flattened gradient of the partition", "a x P/N", "stage_1_and_2.py step: flatten",
                                   C::Temporaries};
constexpr BufferSpec kCastGradient{"fp32 gradient of the partition", "4 B x P/N", "stage_1_and_2.py step: .to(fp32)",
                                   C::Temporaries};
constexpr BufferSpec kOverflow{"overflow check of one gradient", "11 B x largest fragment",
                               "stage_1_and_2.py _has_inf_or_nan", C::Temporaries};
constexpr BufferSpec kNorm{"one gradient in double precision", "8 B x largest fragment",
                           "stage_1_and_2.py get_grad_norm_direct", C::Temporaries};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "4 B x P/N",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};
constexpr BufferSpec kOffloadBuffer{"buffer of the largest gradient on its way to the host",
                                    "d x p",
                                    "stage_1_and_2.py temp_grad_buffer_for_gpu_offload",
                                    C::CommunicationBuffers,
                                    Place::Gpu,
                                    S::Compute,
                                    L::Persistent};
constexpr BufferSpec kOffloadCast{"fp32 gradient fragment on its way to the host", "4 B x largest fragment",
                                  "stage_1_and_2.py async_inplace_copy_grad_to_fp32_buffer_from_gpu", C::Temporaries};

constexpr std::int64_t kMostAlike = std::numeric_limits<std::int32_t>::max(); // payloads that one operation counts

/// Of `whole` elements, those that fall to the stretch from `before` to `after` of `all`.
std::int64_t shareOf(std::int64_t whole, std::int64_t before, std::int64_t after, std::int64_t all)
{
    return (share(Bytes(whole), after, all) - share(Bytes(whole), before, all)).count();
}

constexpr HostSpec kHostMaster = hostPair({"master partition in host memory", "4 B x P/N"},
                                          "stage_1_and_2.py single_partition_of_fp32_groups", C::MasterParameters);
constexpr HostSpec kHostGradient = hostPair({"fp32 gradient in host memory", "4 B x P/N"},
                                            "stage_1_and_2.py initialize_optimizer_states", C::Gradients);
constexpr HostSpec kHostStaging =
    hostPair({"16-bit staging of updated parameters", "d x P/N"},
             "stage_1_and_2.py param_buffer_of_bit16_for_cpu_offload_groups", C::Parameters);
constexpr HostSpec kHostLargest = hostPair({"buffer of the largest gradient", "d x p"},
                                           "stage_1_and_2.py temp_grad_buffer_for_cpu_offload", C::Gradients);
constexpr HostSpec kHostAccumulators =
    hostPair({"gradients accumulated in host memory", "d x tensors of the partition"},
             "stage_1_and_2.py accumulated_grads_in_cpu", C::Gradients);
constexpr BufferSpec kHostMoments =
    hostSpec("optimizer states in host memory", "moments x 4 B x P/N", "ops/adam/cpu_adam.py", C::OptimizerStates,
             Place::HostPageable, L::FromFirstStep);

} // namespace

Zero12Rules::Zero12Rules(const PlanInput& input) : DeepSpeedRules(input), m_order(m_activations)
{
    take(input);
    m_visits = recordVisits(m_activations, m_sizes);
    m_inBackward = planBuckets(m_order, arrivalsInBackward(m_activations, m_visits), m_options.reduceBucketSize);
    m_inOrder = planBuckets(m_order, arrivalsInForwardOrder(m_activations), m_options.reduceBucketSize);
    resize(input);
}

std::string Zero12Rules::structureKey() const
{
    // How many owners a bucket has follows the partitions.
    return reducesToOwners() ? fmt::format("{} r{}", commonKey(), m_ranks) : commonKey();
}

void Zero12Rules::resize(const PlanInput& input)
{
    take(input);
    m_padded = roundUp(m_order.elements(), checkedMultiply(kAlignment, m_ranks));
    m_partition = m_padded / m_ranks;
    m_touched = m_partition > 0 ? m_order.mostTouched(m_partition) : 0;
    defineStates();
    defineGradients();
    defineFlushes();
    defineFlushCopies(flushPlan());
    defineHost();
    defineStep();
}

// __init__: the flat buffer is made beside the module where the free memory takes both (since DeepSpeed pull
// request 7828), otherwise in host memory after the module has left the GPU and the cache has been emptied.
bool Zero12Rules::flattensOnGpu(Bytes both) const
{
    double used = both.asDouble();
    for (const Overhead& overhead : gpuOverheads(*m_cluster, 1))
        used += overhead.bytes.asDouble();
    return used <= m_cluster->gpu.memory.value;
}

void Zero12Rules::defineStates()
{
    const Bytes frozen = bytesOf(frozenParameters(), m_dtypes.frozen);
    const Bytes module = bytesOf(m_order.elements(), m_dtypes.model);
    const Bytes flat = bytesOf(m_padded, m_dtypes.model);
    m_module = m_sizes.addBuffer(kModule, flattensOnGpu(frozen + module + flat) ? module : Bytes(0));
    m_frozen = m_sizes.addBuffer(kFrozen, frozen);
    m_flat = m_sizes.addBuffer(kFlat, flat);
    const Bytes master = bytesOf(m_partition, m_dtypes.master);
    m_master = m_sizes.addBuffer(kMaster, master);
    m_moments = m_sizes.addBuffer(kMoments, stateBytes(m_partition));
    m_firstGradient = m_sizes.addBuffer(kFirstGradient, master);
    m_bucket = m_sizes.addBuffer(kBucket, bytesOf(m_options.reduceBucketSize, m_dtypes.model));
    m_touchedGradients = m_sizes.addBuffer(kTouched, bytesOf(m_touched, m_dtypes.model));
    m_flatGradient = m_sizes.addBuffer(kFlatGradient, bytesOf(m_partition, m_dtypes.accumulate));
    m_castGradient = m_sizes.addBuffer(kCastGradient, m_dtypes.accumulate == m_dtypes.master ? Bytes(0) : master);
    m_overflow = m_sizes.addBuffer(kOverflow, Bytes(checksOverflow() ? fragment() * kOverflowBytes : 0));
    m_norm = m_sizes.addBuffer(kNorm, Bytes(normsInDouble() ? checkedMultiply(8, fragment()) : 0));
    m_foreach = m_sizes.addBuffer(
        kForeach, foreachTemporaries(m_training) && !offload() ? bytesOf(m_partition, m_dtypes.states) : Bytes(0));
    m_gather = m_sizes.addPayload({"updated parameters", "d x P", "stage_1_and_2.py step: all_gather_dp_groups",
                                   bytesOf(m_padded, m_dtypes.model), m_dtypes.model});
}

void Zero12Rules::defineGradients()
{
    m_gradients.clear();
    for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
        const auto at = std::find(m_model.layers.begin(), m_model.layers.end(), static_cast<int>(type));
        const int layer = static_cast<int>(at - m_model.layers.begin());
        const int id = static_cast<int>(type);
        const std::size_t modules = m_activations.modules(id).size();
        std::vector<GradientClasses>& classes = m_gradients.emplace_back(modules);
        if (at == m_model.layers.end())
            continue;
        for (std::size_t module = 0; module < modules; ++module) {
            const ModuleGradient made = moduleGradient(m_order, layer, static_cast<int>(module), bucketLimit());
            const Bytes bucketed = bytesOf(made.bucketedElements(), m_dtypes.model);
            GradientClasses& one = classes[module];
            if (!made.bucketed.empty())
                one.bucketed = m_sizes.addBuffer(kGradient, bucketed, id);
            for (const FlatTensor& tensor : made.large)
                one.large.push_back(m_sizes.addBuffer(tensor.numel > m_options.reduceBucketSize ? kLarge : kGradient,
                                                      bytesOf(tensor.numel, m_dtypes.model), id));
            const Bytes all = bytesOf(made.elements(), m_dtypes.model);
            const Bytes accumulated = bytesOf(made.elements(), m_dtypes.accumulate);
            const auto move = [&](std::string_view name, std::string_view formula, std::string_view source,
                                  Bytes moved) {
                return m_sizes.addPayload({name, formula, source, moved, m_dtypes.model});
            };
            one.toBucket = move("gradient copied to the bucket", "2 d x numel",
                                "stage_1_and_2.py reduce_independent_p_g", bucketed * 2);
            one.addUp = move("gradient added to an earlier one", "(d + 2 a) x numel", "torch AccumulateGrad",
                             all + accumulated * 2);
            one.castBack = move("accumulated gradient cast to be reduced", "(a + d) x numel",
                                "stage_1_and_2.py get_gradient_for_reduction", all + accumulated);
            if (separateAccumulation() && !one.none())
                one.accumulated = m_sizes.addBuffer(kAccumulated, accumulated, id);
        }
    }
}

/// Elements of the copy that an all-reduced flush makes. The bucket is sent as it is when all of it belongs to one
/// rank; slices of several ranks are concatenated, and sent as soon as they exceed the bucket size: at most one slice
/// above it.
std::int64_t Zero12Rules::flattened(const BucketFlush& flush) const
{
    if (!contiguous())
        return flush.endTensor - flush.firstTensor > 1 ? flush.elements : 0;
    if (!m_options.reduceScatter)
        return 0;
    const std::vector<FlatTensor>& tensors = flushPlan().tensors;
    const std::int64_t owner = tensors[flush.firstTensor].offset / m_partition;
    for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
        const FlatTensor& tensor = tensors[i];
        if (tensor.offset / m_partition != owner || (tensor.offset + tensor.numel - 1) / m_partition != owner)
            return std::min(flush.elements, checkedAdd(m_options.reduceBucketSize, m_partition));
    }
    return 0;
}

Zero12Rules::Reduction Zero12Rules::defineReduction(std::int64_t elements, std::int64_t copied)
{
    const bool casts = m_dtypes.wire != m_dtypes.model;
    Reduction reduction;
    reduction.flatten = m_sizes.addBuffer(kFlatten, bytesOf(copied, m_dtypes.model));
    reduction.cast =
        m_sizes.addBuffer(kCast, casts ? bytesOf(copied > 0 ? copied : elements, m_dtypes.wire) : Bytes(0));
    reduction.payload = m_sizes.addPayload(
        {"gradient bucket",
         reducesToOwners() ? "w x elements of the owner in the bucket" : "w x elements of the bucket",
         "stage_1_and_2.py average_tensor", bytesOf(elements, m_dtypes.wire), m_dtypes.wire});
    return reduction;
}

void Zero12Rules::defineFlushes()
{
    m_reductions.clear();
    const BucketPlan& plan = flushPlan();
    for (const BucketFlush& flush : plan.flushes) {
        std::vector<Reduction>& reductions = m_reductions.emplace_back();
        if (!reducesToOwners()) {
            reductions.push_back(defineReduction(flush.elements, flattened(flush)));
            continue;
        }
        for (const OwnerShare& share : ownerShares(plan, flush, m_partition))
            for (std::int64_t done = 0; done < share.owners; done += kMostAlike) {
                Reduction reduction = defineReduction(share.elements, share.inOnePiece ? 0 : share.elements);
                reduction.firstOwner = share.firstOwner + done;
                reduction.count = static_cast<std::int32_t>(std::min(kMostAlike, share.owners - done));
                reductions.push_back(reduction);
            }
    }
}

Zero12Rules::Kept Zero12Rules::keptByFirstRank(const BucketPlan& plan, const BucketFlush& flush) const
{
    Kept kept;
    for (std::size_t i = flush.firstTensor; i < flush.endTensor; ++i) {
        const FlatTensor& tensor = plan.tensors[i];
        if (tensor.offset >= m_partition)
            continue;
        kept.partition += std::min(tensor.numel, m_partition - tensor.offset);
        kept.touched += tensor.numel;
    }
    return kept;
}

void Zero12Rules::defineFlushCopies(const BucketPlan& plan)
{
    m_flushCopies.clear();
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_dtypes.model});
    };
    const std::int64_t all = m_order.elements();
    std::int64_t before = 0;
    for (std::size_t i = 0; i < plan.flushes.size(); ++i) {
        const BucketFlush& flush = plan.flushes[i];
        const std::int64_t after = checkedAdd(before, flush.elements);
        // Which of a bucket's gradients a rank keeps differs from rank to rank: each bucket counts for its share of
        // them. What is carried out is the first rank's.
        const Kept own = executes()
                             ? keptByFirstRank(plan, flush)
                             : Kept{shareOf(m_partition, before, after, all), shareOf(m_touched, before, after, all)};
        before = after;
        Bytes copied;
        Bytes cast;
        for (const Reduction& reduction : m_reductions[i]) {
            copied += m_sizes.buffers[static_cast<std::size_t>(reduction.flatten)].bytes * reduction.count;
            cast += m_sizes.buffers[static_cast<std::size_t>(reduction.cast)].bytes * reduction.count;
        }
        const Bytes narrow = bytesOf(flush.elements, m_dtypes.model);
        const Bytes casting = cast > Bytes(0) ? narrow + cast : Bytes(0);
        FlushCopies copies;
        copies.prepare =
            add("bucket flattened, cast and divided", "4 d x elements", "stage_1_and_2.py allreduce_bucket",
                copied * 2 + casting + bytesOf(flush.elements, m_dtypes.wire) * 2);
        const Bytes kept = bytesOf(own.touched, m_dtypes.model);
        // Of what is reduced to owners each copies its own back.
        const Bytes back = share(copied * 2 + casting, 1, reducesToOwners() ? m_ranks : 1);
        copies.copyBack = add("bucket copied back and the partition's gradients kept", "2 d x elements + 2 d x share",
                              "stage_1_and_2.py allreduce_and_copy, copy_grads_in_partition",
                              back + (offload() ? Bytes(0) : kept * 2));
        copies.down = add("fp32 gradient to the host", "4 B x P/N",
                          "stage_1_and_2.py async_inplace_copy_grad_to_fp32_buffer_from_gpu",
                          bytesOf(own.partition, m_dtypes.master));
        copies.accumulateDown = add("accumulated gradients to the host", "d x tensors of the partition",
                                    "stage_1_and_2.py async_accumulate_grad_in_cpu_via_gpu", kept);
        copies.accumulateUp = add("accumulated gradients back to the GPU", "d x tensors of the partition",
                                  "stage_1_and_2.py async_accumulate_grad_in_cpu_via_gpu", kept);
        m_flushCopies.push_back(copies);
    }
}

void Zero12Rules::defineStep()
{
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_dtypes.master});
    };
    const std::int64_t accumulated = bitsOf(m_dtypes.accumulate) / 8;
    // has_inf_or_nan: a fp32 copy, two comparisons that write masks, their disjunction; the norm in double precision.
    const std::int64_t checking = checksOverflow() ? accumulated + 4 + 2 * (4 + 1) + 3 + 1 : 0;
    const std::int64_t norming = accumulated + 2 * 8;
    m_check = add("overflow check and norm of the gradients", "(a + 18 + a + 16) B x P/N",
                  "stage_1_and_2.py has_overflow, get_grad_norm_direct",
                  Bytes(checkedMultiply(m_partition, checking + norming)));
    m_accumulate =
        add("gradients of the micro-step added up", "3 d x tensors of the partition",
            "stage_1_and_2.py independent_gradient_partition_epilogue", bytesOf(m_touched, m_dtypes.model) * 3);
    const Bytes narrow = bytesOf(m_partition, m_dtypes.accumulate);
    const Bytes master = bytesOf(m_partition, m_dtypes.master);
    const bool casts = m_dtypes.accumulate != m_dtypes.master;
    m_prepare = add("gradient flattened, cast and unscaled", "(3 a + 12) B x P/N",
                    "stage_1_and_2.py step: flatten, unscale_and_clip_grads",
                    narrow * 2 + (casts ? narrow + master : Bytes(0)) + master * 2);
    // DeepSpeedCPUAdam is one pass too; the host unscales before it and narrows the parameters after it.
    m_step =
        add("optimizer step", "accesses x P/N + 6 B x P/N", "ops/adam; stage_1_and_2.py _optimizer_step",
            optimizerStepBytes(m_training.optimizer, offload() ? OptimizerForm::Fused : torchOptimizerForm(m_training),
                               m_partition, {m_dtypes.master, m_dtypes.master, m_dtypes.states}) +
                master + bytesOf(m_partition, m_dtypes.model) + (offload() ? master * 2 : Bytes(0)));
}

void Zero12Rules::defineHost()
{
    const bool rounded = roundsPinned(m_options.pinMemory);
    const auto host = [&](const HostSpec& spec, Bytes exact) {
        return m_sizes.addBuffer(spec.of(m_options.pinMemory), offload() ? hostBytes(exact, rounded) : Bytes(0));
    };
    const Bytes largest = bytesOf(m_order.largest(), m_dtypes.model);
    m_offloadBuffer = m_sizes.addBuffer(kOffloadBuffer, offload() ? largest : Bytes(0));
    m_offloadCast = m_sizes.addBuffer(
        kOffloadCast, offload() && m_dtypes.master != m_dtypes.model ? bytesOf(fragment(), m_dtypes.master) : Bytes(0));
    m_hostMaster = host(kHostMaster, bytesOf(m_partition, m_dtypes.master));
    m_hostGradient = host(kHostGradient, bytesOf(m_partition, m_dtypes.master));
    m_hostStaging = host(kHostStaging, bytesOf(m_partition, m_dtypes.model));
    m_hostLargest = host(kHostLargest, largest);
    const bool accumulates =
        m_training.gradientAccumulation > 1 && m_options.stage == 2 && m_dtypes.master == DType::Fp32;
    // One allocation a tensor: each is rounded on its own. The rounding at most doubles; the mean tensor stands for
    // all.
    const std::int64_t tensors =
        m_order.tensors().empty() || m_order.elements() == 0
            ? 1
            : std::max<std::int64_t>(
                  1, m_touched / std::max<std::int64_t>(1, m_order.elements() /
                                                               static_cast<std::int64_t>(m_order.tensors().size())));
    const Bytes all = rounded ? hostBytes(bytesOf(ceilDivide(m_touched, tensors), m_dtypes.model), true) * tensors
                              : bytesOf(m_touched, m_dtypes.model);
    m_hostAccumulators =
        m_sizes.addBuffer(kHostAccumulators.of(m_options.pinMemory), offload() && accumulates ? all : Bytes(0));
    m_hostMoments = m_sizes.addBuffer(kHostMoments, offload() ? stateBytes(m_partition) : Bytes(0));
    m_parametersUp = m_sizes.addPayload({"updated parameters to the GPU", "d x P/N", "stage_1_and_2.py step",
                                         bytesOf(m_partition, m_dtypes.model), m_dtypes.model});
}

ModelStates Zero12Rules::modelStates() const
{
    ModelStates states;
    states.parameters = bytesOf(m_padded, m_dtypes.model) + bytesOf(frozenParameters(), m_dtypes.frozen);
    if (m_options.stage == 1)
        states.gradients = bytesOf(m_order.elements(), m_dtypes.accumulate);
    if (offload())
        return states;
    if (m_options.stage == 2)
        states.gradients = bytesOf(m_partition, m_dtypes.model);
    states.masterParameters = bytesOf(m_partition, m_dtypes.master);
    states.optimizerStates = stateBytes(m_partition);
    return states;
}

std::unique_ptr<FrameworkRules> makeZero12Rules(const PlanInput& input)
{
    return std::make_unique<Zero12Rules>(input);
}

} // namespace shardwright
