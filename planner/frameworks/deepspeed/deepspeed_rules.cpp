#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"

#include <algorithm>

#include <fmt/compile.h>

#include "core/deepspeed_options.hpp"
#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

// transformers save_pretrained splits checkpoints into files of at most this size (max_shard_size="5GB").
constexpr Bytes kCheckpointFile = 5_GB;

} // namespace

DType deepspeedModelDtype(const Training& training)
{
    return training.precision.mixed.value_or(DType::Fp32);
}

OptimizerWrapper optimizerWrapper(const Training& training, const DeepSpeedOptions& options)
{
    const DType model = deepspeedModelDtype(training);
    const bool offload = options.offloadOptimizer != OffloadDevice::None;
    if (options.stage == 3)
        return OptimizerWrapper::Zero3;
    if (options.stage == 1 && model == DType::Bf16 && options.gradAccumDtype == DType::Fp32 && !offload)
        return OptimizerWrapper::Bf16;
    if (options.stage > 0)
        return OptimizerWrapper::Zero12;
    return model == DType::Bf16   ? OptimizerWrapper::Bf16
           : model == DType::Fp16 ? OptimizerWrapper::Fp16
                                  : OptimizerWrapper::Plain;
}

DeepSpeedDtypes deepspeedDtypes(const Training& training, const DeepSpeedOptions& options)
{
    DeepSpeedDtypes dtypes;
    dtypes.model = deepspeedModelDtype(training);
    dtypes.frozen = training.lora && training.lora->baseDtype ? *training.lora->baseDtype : dtypes.model;
    dtypes.master = options.bf16MasterWeightsAndGrads ? dtypes.model : DType::Fp32;
    dtypes.states = options.bf16OptimizerStates ? dtypes.model : DType::Fp32;
    dtypes.wire = options.communicationDtype.value_or(dtypes.model);
    dtypes.accumulate = options.gradAccumDtype.value_or(dtypes.model);
    if (options.stage == 2)
        dtypes.accumulate = dtypes.model; // no cast to grad_accum_dtype in the path of stage 2
    if (optimizerWrapper(training, options) == OptimizerWrapper::Bf16)
        dtypes.accumulate = DType::Fp32;
    return dtypes;
}

bool isOneBit(Optimizer optimizer)
{
    return optimizer == Optimizer::OneBitAdam || optimizer == Optimizer::ZeroOneAdam ||
           optimizer == Optimizer::OneBitLamb;
}

bool reducesToOwners(const Training& training, const DeepSpeedOptions& options)
{
    const bool oneBuffer = options.contiguousGradients || options.offloadOptimizer != OffloadDevice::None;
    return optimizerWrapper(training, options) == OptimizerWrapper::Zero12 && options.reduceScatter &&
           !options.useMultiRankBucketAllreduce && oneBuffer;
}

Bytes hostBytes(Bytes exact, bool pinned)
{
    return pinned && exact > Bytes(0) ? Bytes(nextPowerOfTwo(exact.count())) : exact;
}

DeepSpeedRules::DeepSpeedRules(const PlanInput& input)
    : m_model(input.model), m_slice(input.slice), m_parallelism(input.strategy.parallelism),
      m_options(std::get<DeepSpeedOptions>(input.strategy.options)), m_training(input.training),
      m_dtypes(deepspeedDtypes(m_training, m_options)), m_wrapper(optimizerWrapper(m_training, m_options)),
      m_activations(input.model, input.training, m_dtypes.model, {false, localShape(input)})
{
}

void DeepSpeedRules::take(const PlanInput& input)
{
    m_options = std::get<DeepSpeedOptions>(input.strategy.options);
    m_training = input.training;
    m_cluster = &input.cluster;
    m_ranks = input.ranks();
    m_sizes.clear();
    m_activations.defineSizes(m_sizes, m_training);
    m_parallelism = input.strategy.parallelism;
    const bool split = m_parallelism.tensor * m_parallelism.pipeline > 1;
    m_world = m_sizes.addGroup({split ? "data" : "world", m_ranks, nodesOfDataRanks(input, m_ranks)});
}

std::string DeepSpeedRules::optionsKey() const
{
    const DeepSpeedOptions& o = m_options;
    return fmt::format(
        FMT_COMPILE("deepspeed{} {} off{}/{}/{}/{}/{} nvme{}/{} b{} ov{} cg{} rs{} mr{} pf{} pt{}/{} ml{} mrd{} qw{} "
                    "qg{} hpz{} mics{} m{} f{} M{} a{} w{} s{} init{}/{} "),
        o.stage, m_model.id, nameOf(o.offloadOptimizer), nameOf(o.offloadParam), o.offloadRatio, o.pinMemory,
        o.paramPinMemory, o.pipelineRead, o.pipelineWrite, o.reduceBucketSize, overlapsCommunication(o),
        o.contiguousGradients, o.reduceScatter, o.useMultiRankBucketAllreduce, o.prefetchBucketSize,
        o.paramPersistenceThreshold, o.modelPersistenceThreshold, o.maxLiveParameters, o.maxReuseDistance,
        o.quantizedWeights, o.quantizedGradients, o.hpzPartitionSize > 1, o.micsShardSize > 0, nameOf(m_dtypes.model),
        nameOf(m_dtypes.frozen), nameOf(m_dtypes.master), nameOf(m_dtypes.accumulate), nameOf(m_dtypes.wire),
        nameOf(m_dtypes.states), o.zero3Init, o.memoryEfficientLinear);
}

std::string DeepSpeedRules::trainingKey() const
{
    return activationStructureKey(m_training) + ' ' + parallelismKey(m_parallelism, m_training);
}

Bytes DeepSpeedRules::stateBytes(std::int64_t elements) const
{
    // ZeRO hands the optimizer one flat vector: Adafactor does not factor vectors and keeps the whole second moment.
    if (m_training.optimizer == Optimizer::Adafactor && m_wrapper != OptimizerWrapper::Plain)
        return bytesOf(elements, DType::Fp32);
    return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), m_dtypes.states);
}

double DeepSpeedRules::textbookPsi() const
{
    if (m_ranks == 1)
        return 0;
    const auto steps = static_cast<double>(m_training.gradientAccumulation);
    // ZeRO paper (arXiv 1910.02054) sec. 7: one scatter and one gather below stage 3; stage 2 cannot keep whole
    // gradients and scatters in every micro-step. Stage 3 gathers twice and scatters once.
    if (m_options.stage <= 1)
        return 2;
    if (m_options.stage == 2)
        return steps + 1;
    // ZeRO++ (arXiv 2306.10209) sec. 3: int8 weights halve both gathers of 16-bit weights, int4 gradients quarter the
    // scatter.
    const double gather = m_options.quantizedWeights ? 0.5 : 1;
    const double scatter = m_options.quantizedGradients ? 0.25 : 1;
    double psi = steps * (2 * gather + scatter);
    if (m_options.micsShardSize > 0)
        psi += 2.0 / static_cast<double>(m_options.micsShardSize); // all-reduce of the shard over the replicas
    return psi;
}

std::string DeepSpeedRules::psiDifference() const
{
    if (m_ranks == 1)
        return {};
    if (m_wrapper == OptimizerWrapper::Bf16)
        return "the BF16 optimizer all-reduces its gradients (2) and gathers the updated 16-bit parameters (1): it "
               "shards the optimizer at stage 0 too";
    if (isOneBit(m_training.optimizer))
        return "after its warm-up the optimizer sends one bit an element instead of gradients";
    if (m_wrapper != OptimizerWrapper::Zero12 && m_wrapper != OptimizerWrapper::Zero3)
        return {};
    if (m_options.stage < 3) {
        if (reducesToOwners())
            return {};
        return "gradients are all-reduced (2) where the paper counts a reduce-scatter (1): "
               "use_multi_rank_bucket_allreduce or reduce_scatter=false";
    }
    std::string why = "parameters that are used again within max_reuse_distance are not gathered a second time; small "
                      "parameters stay gathered";
    if (m_training.checkpointing == Checkpointing::Full && m_training.checkpointSegment > 1)
        why += "; recomputing a checkpoint of several blocks gathers them once more, unless they are used again within "
               "max_reuse_distance";
    if (m_options.hpzPartitionSize > 1)
        why += "; hpZ gathers from the secondary shard inside its group after the first forward";
    return why;
}

Bytes DeepSpeedRules::hostInitPeakPerNode() const
{
    const Bytes whole = bytesOf(m_model.parameters(), m_training.precision.load);
    // Without zero.Init every rank builds and loads the whole model in host memory; with it a rank holds one file of
    // the checkpoint at a time.
    const bool partitioned = m_options.stage == 3 && m_options.zero3Init;
    return (partitioned ? std::min(whole, kCheckpointFile) : whole) * m_cluster->gpusPerNode;
}

CheckpointSize DeepSpeedRules::checkpoint() const
{
    CheckpointSize size;
    size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
    size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
    const bool shardsStates = m_wrapper != OptimizerWrapper::Plain && m_wrapper != OptimizerWrapper::Fp16;
    const Bytes stepped = bytesOf(steppedElements(), m_dtypes.master) + stateBytes(steppedElements());
    const Bytes model =
        bytesOf(m_model.trainableParameters(), m_dtypes.model) + bytesOf(frozenParameters(), m_dtypes.frozen);
    const std::string_view prefix = m_dtypes.model == DType::Bf16 ? "bf16_" : "";
    if (m_options.stage == 3) {
        const std::int64_t shards = m_options.micsShardSize > 0 ? m_options.micsShardSize : m_ranks;
        size.shardedPerRank = stepped + bytesOf(ceilDivide(frozenParameters(), shards), m_dtypes.frozen);
        size.shardedTotal = size.shardedPerRank * m_ranks;
        size.filesPerRank = 2;
        size.layout = fmt::format("{}zero_pp_rank_<r>_mp_rank_00_optim_states.pt and "
                                  "zero_pp_rank_<r>_mp_rank_00_model_states.pt per rank; {}",
                                  prefix,
                                  m_options.gather16bitWeightsOnModelSave
                                      ? "save_16bit_model writes the consolidated 16-bit weights"
                                      : "no consolidated weights (zero_to_fp32.py rebuilds them)");
    } else if (shardsStates) {
        size.shardedPerRank = stepped;
        size.shardedTotal = stepped * m_ranks + model;
        size.filesPerRank = 1;
        size.layout = fmt::format("{}zero_pp_rank_<r>_mp_rank_00_optim_states.pt per rank, "
                                  "mp_rank_00_model_states.pt once with the 16-bit weights",
                                  prefix);
    } else {
        size.shardedPerRank = Bytes(0);
        size.shardedTotal = stepped + model;
        size.filesPerRank = 0;
        size.layout = "mp_rank_00_model_states.pt once, with weights and optimizer";
    }
    return size;
}

std::vector<Note> DeepSpeedRules::assumptions() const
{
    std::vector<Note> notes;
    if (!m_training.precision.mixed && m_training.precision.load != DType::Fp32)
        notes.push_back({fmt::format("without mixed precision DeepSpeed casts the {} weights to fp32 and trains in it",
                                     nameOf(m_training.precision.load)),
                         Provenance::Vendor, "engine _configure_distributed_model"});
    if (m_training.lora && m_training.lora->adapterDtype != m_dtypes.model)
        notes.push_back(
            {fmt::format("adapters are trained in {}: the engine casts the whole module", nameOf(m_dtypes.model)),
             Provenance::Vendor, "engine _configure_distributed_model"});
    if (offloadsOptimizer())
        notes.push_back({m_options.pinMemory ? "pinned host buffers are rounded up to powers of two"
                                             : "host buffers are pageable (pin_memory false)",
                         Provenance::Vendor, "ATen CachingHostAllocator PowerOf2Ceil; zero/offload_config.py"});
    return notes;
}

std::vector<Note> DeepSpeedRules::excluded() const
{
    return {{"tensors of a few bytes: norms, loss scale, flags, reduction results", Provenance::Assumed,
             "zero/stage_1_and_2.py, zero/stage3.py"}};
}

} // namespace shardwright
