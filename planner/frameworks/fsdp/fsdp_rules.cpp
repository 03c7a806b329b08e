#include "planner/frameworks/fsdp/fsdp_rules.hpp"

#include "planner/frameworks/optimizer_rules.hpp"
#include "planner/frameworks/sharding.hpp"

namespace shardwright {

namespace {

constexpr BufferSpec kModuleGradient{"unsharded gradient of a module", "c x numel", "torch autograd",
                                     Category::Gradients};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "d x shards",
                              "torch/optim/adamw.py _multi_tensor_adamw", Category::Temporaries};
constexpr BufferSpec kReceive{"receive buffers of a pipeline stage, one for each micro-batch and direction",
                              "c T H G x directions, / t where the sequence is split",
                              "torch/distributed/pipelining/stage.py _prepare_forward_infra, _create_grad_recv_info",
                              Category::CommunicationBuffers,
                              Place::Gpu,
                              Stream::Compute,
                              Lifetime::Persistent};

} // namespace

FsdpShape::FsdpShape(const PlanInput& input, const FsdpOptions& fsdpOptions, const UnitPolicy& policy,
                     ActivationVariant variant)
    : model(input.model), slice(input.slice), options(fsdpOptions),
      compute(options.paramDtype.value_or(computeDtype(input.training.precision))),
      trained(input.training.precision.mixed && options.upcastTrainable ? DType::Fp32 : input.training.precision.load),
      frozen(input.training.precision.load), reduce(options.reduceDtype.value_or(compute)),
      activations(input.model, input.training, compute, variant), units(unitsOf(input.model, policy)),
      training(input.training)
{
}

void FsdpRules::resizeShape(const PlanInput& input, std::int64_t shardRanks)
{
    FsdpShape& shape = m_shape;
    shape.training = input.training;
    shape.pipeline = pipelineShape(input.strategy.parallelism, input.training.gradientAccumulation);
    shape.cluster = &input.cluster;
    shape.shardRanks = shardRanks;
    shape.replicas = replicaGroup(input, shardRanks);
    m_sizes.clear();
    shape.activations.defineSizes(m_sizes, shape.training);
    shape.shardGroup = m_sizes.addGroup({shape.replicas.ranks > 1 || input.slice != nullptr ? "shard" : "world",
                                         shardRanks, nodesOfDataRanks(input, shardRanks)});
    shape.replicaGroup = m_sizes.addGroup(shape.replicas);
    m_kept.clear();
    for (std::size_t type = 0; type < shape.units.types.size(); ++type)
        m_kept.push_back(defineUnit(type));
    shape.gradientOfModule.clear();
    shape.accumulationOfModule.clear();
    shape.tiedSumOfModule.clear();
    for (std::size_t type = 0; type < shape.model.layerTypes.size(); ++type) {
        std::vector<BufferClassId> classes;
        std::vector<PayloadId> accumulations;
        std::vector<PayloadId> sums;
        for (const LeafModule& module : shape.activations.modules(static_cast<int>(type))) {
            const bool trains = module.trainable > 0;
            const Bytes fresh = bytesOf(module.trainable, shape.compute);
            const Bytes kept = bytesOf(module.trainable, shape.reduce);
            classes.push_back(trains ? m_sizes.addBuffer(kModuleGradient, fresh, static_cast<int>(type)) : -1);
            accumulations.push_back(
                trains ? m_sizes.addPayload({"gradient added to that of earlier micro-steps", "(c + 2 r) x numel",
                                             "torch AccumulateGrad", fresh + kept * 2, shape.reduce})
                       : -1);
            sums.push_back(trains ? m_sizes.addPayload({"gradients of a tied weight added up", "3 c x numel",
                                                        "torch autograd InputBuffer", fresh * 3, shape.compute})
                                  : -1);
        }
        shape.gradientOfModule.push_back(std::move(classes));
        shape.accumulationOfModule.push_back(std::move(accumulations));
        shape.tiedSumOfModule.push_back(std::move(sums));
    }
    const bool temporaries = foreachTemporaries(shape.training) && !shape.options.offloadParams;
    const Kept kept = keptByRank();
    shape.foreach = m_sizes.addBuffer(kForeach, temporaries ? bytesOf(kept.stepped, shape.trained) : Bytes(0));
    std::int64_t received = 0; // tensors of a micro-batch that come from other stages
    if (shape.pipelined())
        for (const StageChunk& chunk : shape.slice->chunks)
            received += (chunk.receivesInput ? 1 : 0) + (chunk.sendsOutput ? 1 : 0);
    shape.receive = m_sizes.addBuffer(kReceive, shape.activations.boundaryBytes(shape.training) *
                                                    checkedMultiply(received, shape.training.gradientAccumulation));
    shape.clip =
        m_sizes.addPayload({"gradient norm and clipping", "3 d x shards", "torch.nn.utils.clip_grad_norm_",
                            clippingBytes(shape.training, bytesOf(kept.gradients, shape.trained)), shape.trained});
    shape.step = m_sizes.addPayload({"optimizer step", "accesses x shards", "torch.optim",
                                     optimizerStepBytes(shape.training.optimizer, torchOptimizerForm(shape.training),
                                                        kept.stepped, {shape.trained, shape.trained, shape.trained}),
                                     shape.trained});
}

int FsdpRules::communicators() const
{
    const LocalShape& local = m_shape.activations.local();
    const auto one = [](std::int64_t ranks) { return ranks > 1 ? 1 : 0; };
    const int model = one(local.tensor) + one(local.stages) + one(local.context);
    return std::max(1, one(m_shape.shardRanks) + one(m_shape.replicas.ranks) + model);
}

FsdpRules::Kept FsdpRules::keptByRank() const
{
    Kept all;
    for (const Unit& unit : m_shape.units.units) {
        const Kept& kept = m_kept[static_cast<std::size_t>(unit.type)];
        all.parameters += kept.parameters;
        all.gradients = checkedAdd(all.gradients, kept.gradients);
        all.stepped = checkedAdd(all.stepped, kept.stepped);
    }
    return all;
}

Bytes FsdpRules::stateBytes(std::int64_t elements) const
{
    return shardStateBytes(m_shape.training, m_shape.model, elements, m_shape.model.trainableParameters(),
                           m_shape.trained);
}

std::optional<DType> FsdpRules::packedDtype(const UnitType& type, const ParameterSpec& parameter) const
{
    const std::optional<Lora>& lora = m_shape.training.lora;
    const bool packed = lora && !parameter.trainable && !type.root && parameter.shape.size() == 2 &&
                        parameter.role != ParameterRole::Embedding && parameter.role != ParameterRole::Head;
    return packed ? lora->baseDtype : std::nullopt;
}

std::vector<Note> FsdpRules::excluded() const
{
    const std::optional<Lora>& lora = m_shape.training.lora;
    if (!lora || !lora->baseDtype)
        return {};
    return {{"block constants of the quantised base, which every rank holds whole, and the dequantised copy of the "
             "matrix in use",
             Provenance::Assumed, "bitsandbytes functional.py QuantState"}};
}

ModelStates FsdpRules::modelStates() const
{
    ModelStates states;
    if (m_shape.options.offloadParams)
        return states;
    const Kept kept = keptByRank();
    states.parameters = kept.parameters;
    states.gradients = bytesOf(kept.gradients, m_shape.trained);
    states.optimizerStates = stateBytes(kept.stepped);
    return states;
}

Bytes FsdpRules::hostInitPeakPerNode() const
{
    const Bytes whole = bytesOf(m_shape.model.parameters(), m_shape.training.precision.load);
    return m_shape.options.cpuRamEfficientLoading ? whole : whole * m_shape.cluster->gpusPerNode;
}

CheckpointSize FsdpRules::checkpoint() const
{
    const Kept kept = keptByRank();
    CheckpointSize size;
    size.full16Bit = bytesOf(m_shape.model.parameters(), DType::Bf16);
    size.fullFp32 = bytesOf(m_shape.model.parameters(), DType::Fp32);
    size.shardedPerRank = kept.parameters + stateBytes(kept.stepped);
    size.shardedTotal = size.shardedPerRank * m_shape.shardRanks;
    size.filesPerRank = 2;
    size.layout = "SHARDED_STATE_DICT: torch.distributed.checkpoint folders pytorch_model_fsdp_0 and optimizer_0, one "
                  ".distcp file per rank in each, and .metadata; FULL_STATE_DICT gathers everything on rank 0";
    return size;
}

} // namespace shardwright
