// Sizes of Megatron-LM's buffers, and what it refuses.

#include "planner/frameworks/megatron/megatron_rules.hpp"

#include <fmt/format.h>

#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::string_view kBuffer = "megatron/core/distributed/param_and_grad_buffer.py";
constexpr std::string_view kDistributed = "megatron/core/optimizer/distrib_optimizer.py";
constexpr std::string_view kOptimizer = "megatron/core/optimizer/optimizer.py";

// param_and_grad_buffer.py _pad_end_of_bucket_if_needed: the distributed optimizer cuts buckets over the ranks, each
// part a multiple of 128 elements at best for NCCL.
constexpr std::int64_t kBucketAlignment = 128;
// distributed_data_parallel.py: bucket_size = max(40000000, 1000000 * dp_size)
constexpr std::int64_t kBucketPerRank = 1000000;

constexpr BufferSpec persistent(std::string_view name, std::string_view formula, std::string_view source, C category)
{
    return {name, formula, source, category, Place::Gpu, S::Compute, L::Persistent};
}
constexpr BufferSpec kParameters = persistent("parameters of the stage", "c P / (t p)", kBuffer, C::Parameters);
constexpr BufferSpec kGradients =
    persistent("gradient buffer of the stage", "4 B (or c) P / (t p)", kBuffer, C::Gradients);
constexpr BufferSpec kMaster = persistent("master parameters", "4 B P / (t p), / d with the distributed optimizer",
                                          kDistributed, C::MasterParameters);
constexpr BufferSpec kMoments{"optimizer states", "moments x 4 B P / (t p), / d with the distributed optimizer",
                              kDistributed,       C::OptimizerStates,
                              Place::Gpu,         S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kMainGradients{"fp32 gradients of the step", "4 B P / (t p), / d with the distributed optimizer",
                                    "megatron/core/optimizer/optimizer.py _copy_model_grads_to_main_grads",
                                    C::Temporaries};
constexpr BufferSpec kGradient{"gradient of a module before it is added to the buffer", "c numel",
                               "megatron/core/distributed/distributed_data_parallel.py _make_backward_post_hook",
                               C::Temporaries};

/// Matrices' gradients are added to the buffer by the product itself (gradient_accumulation_fusion, on by default);
/// those of tables, norms and routers exist on their own first.
bool fusesAccumulation(ModuleKind kind)
{
    switch (kind) {
    case ModuleKind::Embedding:
    case ModuleKind::InputNorm:
    case ModuleKind::AttentionNorm:
    case ModuleKind::PostAttentionNorm:
    case ModuleKind::PostMlpNorm:
    case ModuleKind::FinalNorm:
    case ModuleKind::Router: return false;
    default: return true;
    }
}

/// Pipeline stages stand next to each other on a node only where one holds few ranks.
bool crossesNodes(const PlanInput& input, std::int64_t stages)
{
    return checkedMultiply(checkedMultiply(input.ranks(), input.strategy.parallelism.tensor), stages) >
           input.cluster.gpusPerNode;
}

} // namespace

MegatronRules::MegatronRules(const PlanInput& input)
    : m_model(input.model), m_slice(*input.slice), m_options(std::get<MegatronOptions>(input.strategy.options)),
      m_parallelism(input.strategy.parallelism), m_compute(computeDtype(input.training.precision)),
      m_activations(input.model, input.training, m_compute, {false, localShape(input)})
{
    resize(input);
}

DType MegatronRules::gradientDtype() const
{
    // megatron/training/arguments.py: bf16 turns accumulate_allreduce_grads_in_fp32 on, but for bf16 main gradients.
    if (mainGradientDtype() == DType::Bf16)
        return DType::Bf16;
    return m_options.fp32GradAccumulation || m_compute != DType::Fp16 ? DType::Fp32 : m_compute;
}

DType MegatronRules::mainGradientDtype() const
{
    return m_options.precisionAwareOptimizer ? m_options.mainGradsDtype : DType::Fp32;
}

/// transformer_engine/pytorch/optimizers/fused_adam.py store_param_remainders: the lower halves of fp32 master weights
/// whose upper halves are the bf16 parameters.
Bytes MegatronRules::masterBytes(std::int64_t elements) const
{
    if (!mixed())
        return Bytes(0);
    const bool remainders = m_options.precisionAwareOptimizer && m_compute == DType::Bf16;
    return bytesOf(elements, remainders ? DType::Bf16 : DType::Fp32);
}

void MegatronRules::resize(const PlanInput& input)
{
    m_options = std::get<MegatronOptions>(input.strategy.options);
    m_parallelism = input.strategy.parallelism;
    m_training = input.training;
    m_cluster = &input.cluster;
    m_ranks = input.ranks();
    m_expertRanks = expertDataRanks(input);
    m_sizes.clear();
    m_activations.defineSizes(m_sizes, m_training);
    const auto group = [&](std::string_view name, std::int64_t ranks, std::int64_t stride) {
        return m_sizes.addGroup(
            {name, ranks, std::min(ranks, nodesOfConsecutive(*m_cluster, checkedMultiply(ranks, stride)))});
    };
    const std::int64_t t = m_parallelism.tensor;
    m_parts[0] = {};
    m_parts[1] = {};
    m_parts[0].group = group("data", m_ranks, t);
    m_parts[1].group = group("expert data", m_expertRanks, m_parallelism.expertTensorRanks() * m_parallelism.expert);
    m_embeddingGroup = m_sizes.addGroup({"embedding", 2, crossesNodes(input, m_parallelism.pipeline) ? 2 : 1});
    assignBuckets();
    definePart(m_parts[0], "parameters", m_ranks);
    definePart(m_parts[1], "parameters of experts", m_expertRanks);
    defineBuckets();
    defineTemporaries();
}

/// Buckets fill up in the order of backward; without overlap one holds a whole chunk. Each model chunk has its own.
void MegatronRules::assignBuckets()
{
    m_buckets.clear();
    for (std::size_t chunk = 0; chunk < m_slice.chunks.size(); ++chunk)
        for (int part = 0; part < 2; ++part) {
            const std::int64_t ranks = part == 0 ? m_ranks : m_expertRanks;
            const std::int64_t limit = m_options.overlapGradReduce
                                           ? std::max(m_options.bucketSize, checkedMultiply(kBucketPerRank, ranks))
                                           : INT64_MAX;
            Bucket bucket{part, static_cast<int>(chunk), 0, m_slice.chunks[chunk].end - 1, 0, -1, -1};
            const auto close = [&](int layer) {
                if (bucket.elements == 0)
                    return;
                bucket.closes = layer;
                if (m_options.distributedOptimizer)
                    bucket.elements = roundUp(bucket.elements, checkedMultiply(kBucketAlignment, ranks));
                m_parts[part].elements = checkedAdd(m_parts[part].elements, bucket.elements);
                m_buckets.push_back(bucket);
                bucket.elements = 0;
                bucket.opens = layer;
            };
            for (int layer = m_slice.chunks[chunk].end - 1; layer >= m_slice.chunks[chunk].first; --layer) {
                const std::vector<ParameterSpec>& parameters =
                    m_model.layer(static_cast<std::size_t>(layer)).parameters;
                for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter)
                    for (std::int64_t i = 0; i < parameter->repeat; ++i) {
                        if (!parameter->trainable || (parameter->role == ParameterRole::Expert) != (part == 1))
                            continue;
                        if (bucket.elements == 0)
                            bucket.opens = layer;
                        bucket.elements = checkedAdd(bucket.elements, parameter->numel);
                        if (bucket.elements >= limit)
                            close(layer);
                    }
            }
            close(m_slice.chunks[chunk].first);
        }
}

Bytes MegatronRules::stateBytes(std::int64_t elements) const
{
    if (m_options.precisionAwareOptimizer)
        return bytesOf(elements, m_options.expAvgDtype) + bytesOf(elements, m_options.expAvgSqDtype);
    return shardStateBytes(m_training, m_model, elements, m_model.trainableParameters(), DType::Fp32);
}

void MegatronRules::definePart(Part& part, std::string_view name, std::int64_t ranks)
{
    part.ranks = ranks;
    part.stepped = m_options.distributedOptimizer ? ceilDivide(part.elements, ranks) : part.elements;
    const Bytes fp32 = bytesOf(part.stepped, DType::Fp32);
    const Bytes gradients = bytesOf(part.elements, gradientDtype());
    part.parameters = m_sizes.addBuffer(kParameters, bytesOf(part.elements, m_compute));
    part.gradients = m_sizes.addBuffer(kGradients, gradients);
    part.master = m_sizes.addBuffer(kMaster, masterBytes(part.stepped));
    part.moments = m_sizes.addBuffer(kMoments, stateBytes(part.stepped));
    part.mainGradients = m_sizes.addBuffer(kMainGradients, castsGradients() ? fp32 : Bytes(0));
    part.zero = m_sizes.addPayload(
        {name, "gradient buffer", "distributed_data_parallel.py zero_grad_buffer", gradients, gradientDtype(), false});
    // FusedAdam reads gradient, master parameters and moments once and writes all but the gradient; the 16-bit
    // parameters are written after it. The norm reads the gradients once, clipping scales them.
    // The precision-aware one reads and writes the 16-bit parameters itself.
    const Bytes gradient = bytesOf(part.stepped, mainGradientDtype());
    Bytes moved = gradient + stateBytes(part.stepped) * 2;
    if (mixed() && m_options.precisionAwareOptimizer)
        moved += masterBytes(part.stepped) * 2 + bytesOf(part.stepped, m_compute) * 2;
    else
        moved += fp32 * 2 + (mixed() ? fp32 + bytesOf(part.stepped, m_compute) : Bytes(0));
    if (castsGradients())
        moved += gradient + bytesOf(part.stepped, gradientDtype());
    if (m_training.gradientClipping)
        moved += gradient * 3;
    part.step = m_sizes.addPayload({name, "optimizer step", kOptimizer, moved, DType::Fp32, false});
}

void MegatronRules::defineBuckets()
{
    std::map<std::pair<int, std::int64_t>, std::pair<PayloadId, PayloadId>> known;
    for (Bucket& bucket : m_buckets) {
        const auto [at, fresh] = known.try_emplace({bucket.part, bucket.elements}, -1, -1);
        if (fresh) {
            at->second.first = m_sizes.addPayload({"gradients", "bucket in the gradient buffer's dtype", kBuffer,
                                                   bytesOf(bucket.elements, gradientDtype()), gradientDtype()});
            at->second.second = m_sizes.addPayload(
                {"updated parameters", "bucket", kBuffer, bytesOf(bucket.elements, m_compute), m_compute});
        }
        bucket.reduce = at->second.first;
        bucket.gather = at->second.second;
    }
    std::int64_t embedding = 0;
    if (m_slice.tiedAcrossStages)
        for (const int type : m_model.layers)
            for (const ParameterSpec& parameter : m_model.layerTypes[static_cast<std::size_t>(type)].parameters)
                if (parameter.role == ParameterRole::Embedding || parameter.role == ParameterRole::Head)
                    embedding = parameter.numel;
    m_tied = m_sizes.addPayload({"gradient of the shared embedding", "4 B V H / t",
                                 "megatron/core/distributed/finalize_model_grads.py _allreduce_embedding_grads",
                                 bytesOf(embedding, gradientDtype()), gradientDtype(), false});
}

void MegatronRules::defineTemporaries()
{
    m_gradientTemporaries.clear();
    for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
        std::vector<BufferClassId>& classes = m_gradientTemporaries.emplace_back();
        for (const LeafModule& module : m_activations.modules(static_cast<int>(type)))
            classes.push_back(
                module.trainable == 0 || fusesAccumulation(module.kind)
                    ? -1
                    : m_sizes.addBuffer(kGradient, bytesOf(module.trainable, m_compute), static_cast<int>(type)));
    }
}

std::string MegatronRules::structureKey() const
{
    const PipelineShape shape = pipelineShape(m_parallelism, m_training.gradientAccumulation);
    const Parallelism& p = m_parallelism;
    return fmt::format(
        "megatron {} do{} og{} op{} to{} pa{} g{}/{} b{} t{} sp{} p{}/{}/{} m{} s{} c{}/{} e{}/{}/{} d{}/{} {}",
        m_model.id, m_options.distributedOptimizer, m_options.overlapGradReduce, m_options.overlapParamGather,
        m_options.tpCommOverlap, m_options.precisionAwareOptimizer, nameOf(gradientDtype()),
        nameOf(mainGradientDtype()), m_buckets.size(), p.tensor, p.sequenceParallel, p.pipeline, nameOf(p.schedule),
        p.virtualStages, shape.stages > 1 ? shape.microBatches : 0, m_slice.stage, p.context, nameOf(p.exchange),
        p.expert, p.expertTensor, p.expertImbalance, m_ranks > 1, m_expertRanks > 1,
        activationStructureKey(m_training));
}

ModelStates MegatronRules::modelStates() const
{
    ModelStates states;
    for (const Part& part : m_parts) {
        states.parameters += bytesOf(part.elements, m_compute);
        states.gradients += bytesOf(part.elements, gradientDtype());
        if (mixed())
            states.masterParameters += masterBytes(part.stepped);
        states.optimizerStates += stateBytes(part.stepped);
    }
    return states;
}

Bytes MegatronRules::hostInitPeakPerNode() const
{
    return bytesOf(m_model.parameters(), m_training.precision.load) * m_cluster->gpusPerNode;
}

CheckpointSize MegatronRules::checkpoint() const
{
    CheckpointSize size;
    size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
    size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
    const ModelStates states = modelStates();
    const Bytes optimizer = (mixed() ? states.masterParameters : Bytes(0)) + states.optimizerStates;
    if (m_options.distributedOptimizer) {
        size.shardedPerRank = optimizer;
        // Of each kind of expert there is one copy of the weights on every expert-parallel rank; over the
        // tensor-parallel ranks the caller adds up.
        const std::int64_t experts =
            checkedMultiply(m_parallelism.expert, m_parallelism.expertTensorRanks()) * m_parts[1].elements;
        size.shardedTotal = optimizer * m_ranks + bytesOf(m_parts[0].elements, m_compute) +
                            bytesOf(ceilDivide(experts, m_parallelism.tensor), m_compute);
        size.filesPerRank = 1;
        size.layout = "torch_dist: a file per rank with its part of the optimizer; weights once";
    } else {
        size.shardedTotal = optimizer + states.parameters;
        size.shardedPerRank = Bytes(0);
        size.filesPerRank = 0;
        size.layout = "model_optim_rng.pt once per tensor- and pipeline-parallel rank";
    }
    return size;
}

std::vector<Note> MegatronRules::assumptions() const
{
    std::vector<Note> notes{{"matrices' gradients are accumulated into the gradient buffer by the product itself "
                             "(gradient_accumulation_fusion)",
                             Provenance::Vendor, "megatron/training/arguments.py"}};
    if (m_compute == DType::Bf16 && !m_options.fp32GradAccumulation && gradientDtype() == DType::Fp32)
        notes.push_back({"gradients are accumulated in fp32: Megatron-LM turns it on for bf16", Provenance::Vendor,
                         "megatron/training/arguments.py validate_args"});
    return notes;
}

std::vector<Note> MegatronRules::excluded() const
{
    std::vector<Note> notes{
        {"all-reduce of the norms' gradients over the tensor-parallel ranks, found-inf flags, norms",
         Provenance::Assumed, "megatron/core/distributed/finalize_model_grads.py"}};
    if (m_activations.local().overlapsProducts)
        notes.push_back({"tp_comm_overlap: the user buffers themselves; products that run in pieces are timed as whole "
                         "ones, and their collectives at NCCL's rates",
                         Provenance::Assumed, "transformer_engine/pytorch/module/base.py initialize_ub"});
    return notes;
}

int MegatronRules::communicators() const
{
    const auto one = [](std::int64_t ranks) { return ranks > 1 ? 1 : 0; };
    return std::max(1, one(m_ranks) + one(m_parallelism.tensor) + one(m_parallelism.pipeline) +
                           one(m_parallelism.context) + one(m_parallelism.expert));
}

std::vector<std::string> megatronRefusals(const PlanInput& input)
{
    std::vector<std::string> reasons;
    const auto& options = std::get<MegatronOptions>(input.strategy.options);
    const Parallelism& parallelism = input.strategy.parallelism;
    const auto refuse = [&](std::string reason) { reasons.push_back(std::move(reason)); };
    std::int64_t blocks = 0;
    for (std::size_t layer = 0; layer < input.model.layers.size(); ++layer)
        blocks += input.model.layer(layer).kind == LayerKind::Block ? 1 : 0;
    const std::int64_t chunks = checkedMultiply(parallelism.pipeline, parallelism.virtualStages);
    if (blocks % chunks != 0)
        refuse(
            fmt::format("Megatron-LM places equally many blocks on each stage: {} do not divide over {} (pipeline {} "
                        "x virtual_stages {})",
                        blocks, chunks, parallelism.pipeline, parallelism.virtualStages));
    if (parallelism.schedule == PipelineSchedule::GPipe && parallelism.pipeline > 1)
        refuse("Megatron-LM runs 1f1b, interleaved with virtual_stages; it has no gpipe schedule");
    if (input.model.architecture.experts > 0 && parallelism.tensor > 1 && !parallelism.sequenceParallel)
        refuse("Megatron-LM needs sequence_parallel where a mixture of experts meets tensor parallelism");
    if (parallelism.expert > 1 && parallelism.tensor > 1 && parallelism.expertTensorRanks() == parallelism.tensor)
        refuse("experts over expert-parallel ranks whose matrices are split over tensor-parallel ranks too are not "
               "planned: set expert_tensor 1 (expert_tensor_parallel_size)");
    if (options.overlapParamGather && !options.distributedOptimizer)
        refuse("overlap_param_gather needs use_distributed_optimizer");
    if (options.overlapParamGather && !options.overlapGradReduce)
        refuse("overlap_param_gather needs overlap_grad_reduce");
    const bool lowDtypes = options.mainGradsDtype != DType::Fp32 || options.expAvgDtype != DType::Fp32 ||
                           options.expAvgSqDtype != DType::Fp32;
    if (lowDtypes && !options.precisionAwareOptimizer)
        refuse("main_grads_dtype, exp_avg_dtype and exp_avg_sq_dtype below fp32 need use_precision_aware_optimizer");
    if (options.precisionAwareOptimizer && !options.distributedOptimizer)
        refuse("use_precision_aware_optimizer needs use_distributed_optimizer");
    if (options.precisionAwareOptimizer && computeDtype(input.training.precision) == DType::Fp32)
        refuse("use_precision_aware_optimizer is for 16-bit parameters");
    if (options.precisionAwareOptimizer && options.mainGradsDtype == DType::Bf16 &&
        (options.fp32GradAccumulation || computeDtype(input.training.precision) != DType::Bf16))
        refuse("main_grads_dtype bf16 needs bf16 training without accumulate_allreduce_grads_in_fp32");
    if (options.tpCommOverlap && !(parallelism.sequenceParallel && parallelism.tensor > 1))
        refuse("tp_comm_overlap needs tensor parallelism with sequence_parallel");
    if (input.training.lora)
        refuse("Megatron-LM trains no adapters (LoRA)");
    switch (input.training.optimizer) {
    case Optimizer::Adam:
    case Optimizer::AdamW: break;
    case Optimizer::Sgd:
    case Optimizer::SgdMomentum:
        if (options.distributedOptimizer)
            refuse("Megatron-LM's distributed optimizer runs Adam");
        break;
    default: refuse(fmt::format("Megatron-LM has no {}: adam or sgd", nameOf(input.training.optimizer)));
    }
    if (input.training.checkpointing == Checkpointing::Cpu)
        refuse("Megatron-LM keeps checkpointed inputs on the GPU: activation_checkpointing full or selective");
    return reasons;
}

std::unique_ptr<FrameworkRules> makeMegatronRules(const PlanInput& input)
{
    return std::make_unique<MegatronRules>(input);
}

} // namespace shardwright
