// torch.nn.parallel.DistributedDataParallel. Sources: torch/nn/parallel/distributed.py,
// csrc/distributed/c10d/reducer.cpp
// ("reducer"), aten/src/ATen/autocast_mode.cpp ("autocast").

#include "planner/frameworks/ddp/ddp_rules.hpp"

#include <map>
#include <utility>

#include <fmt/format.h>

#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr BufferSpec kParameters{
    "parameters of a layer", "l x P_l", "torch.nn.Module", C::Parameters, Place::Gpu, S::Compute, L::Persistent};
constexpr BufferSpec kMoments{"optimizer states of a layer",
                              "moments x l x P_l",
                              "torch.optim",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::FromFirstStep};
constexpr BufferSpec kBuckets{"reduction buckets of a layer",
                              "l x P_l",
                              "reducer initialize_bucket_views",
                              C::CommunicationBuffers,
                              Place::Gpu,
                              S::Compute,
                              L::Persistent};
/// shardrun's buckets are buffers of their own: one is reduced in one call.
constexpr BufferSpec kBucket{"reduction bucket",
                             "gradients of a bucket",
                             "reducer compute_bucket_assignment_by_size",
                             C::CommunicationBuffers,
                             Place::Gpu,
                             S::Compute,
                             L::Persistent};
constexpr BufferSpec kGradient{"gradient of a module", "l x numel", "torch autograd", C::Gradients};
constexpr BufferSpec kAutocastWeight{"weights of a module cast by autocast", "c x numel",
                                     "autocast caches casts of leaf weights", C::GatheredParameters};
/// dist._DEFAULT_FIRST_BUCKET_BYTES: where bucket_cap_mb is left at its default, the first bucket is small so that its
/// reduction begins early.
constexpr Bytes kFirstBucket = 1_MiB;

constexpr BufferSpec kUnpackedWeight{"dequantised weights of a module while it computes", "c x numel",
                                     "bitsandbytes autograd/_functions.py MatMul4Bit", C::Temporaries};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "l x P",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};

} // namespace

DdpRules::DdpRules(const PlanInput& input)
    : m_model(input.model), m_compute(computeDtype(input.training.precision)),
      m_trained(input.training.lora ? input.training.lora->adapterDtype : input.training.precision.load),
      m_activations(input.model, input.training, m_compute)
{
    resize(input);
}

void DdpRules::resize(const PlanInput& input)
{
    m_training = input.training;
    m_options = std::get<DdpOptions>(input.strategy.options);
    m_cluster = &input.cluster;
    m_sizes.clear();
    m_activations.defineSizes(m_sizes, m_training);
    m_world = m_sizes.addGroup({"world", input.ranks(), nodesOfConsecutive(input.cluster, input.ranks())});
    m_types.assign(m_model.layerTypes.size(), {});
    for (std::size_t type = 0; type < m_types.size(); ++type)
        defineType(static_cast<int>(type), m_types[type]);
    assignBuckets();
    m_foreach = m_sizes.addBuffer(
        kForeach, foreachTemporaries(m_training) ? bytesOf(m_model.trainableParameters(), m_trained) : Bytes(0));
    const Bytes gradients = modelStates().gradients;
    const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return m_sizes.addPayload({name, formula, source, moved, m_trained});
    };
    m_copyBack = add("reduced buckets copied to the gradients", "2 l x P", "reducer finalize_bucket_dense",
                     m_options.gradientAsBucketView ? Bytes(0) : gradients * 2);
    m_clip = add("gradient norm and clipping", "3 l x P", "torch.nn.utils.clip_grad_norm_",
                 clippingBytes(m_training, gradients));
    m_step = add("optimizer step", "accesses x P", "torch.optim",
                 optimizerStepBytes(m_training.optimizer, torchOptimizerForm(m_training), m_model.trainableParameters(),
                                    {m_trained, m_trained, m_trained}));
}

std::string DdpRules::structureKey() const
{
    return fmt::format("ddp {} view{} buckets{} d{}/{} base{} {}", m_model.id, m_options.gradientAsBucketView,
                       m_options.bucketCap.count(), nameOf(m_trained), nameOf(m_training.precision.load),
                       packs() ? nameOf(*m_training.lora->baseDtype) : "", activationStructureKey(m_training));
}

ModelStates DdpRules::modelStates() const
{
    ModelStates states;
    for (const int type : m_model.layers) {
        const LayerType& layer = m_model.layerTypes[static_cast<std::size_t>(type)];
        states.parameters += storedBytes(layer, false);
        states.gradients += storedBytes(layer, true);
    }
    states.optimizerStates =
        shardStateBytes(m_training, m_model, m_model.trainableParameters(), m_model.trainableParameters(), m_trained);
    return states;
}

Bytes DdpRules::hostInitPeakPerNode() const
{
    return bytesOf(m_model.parameters(), m_training.precision.load) * m_cluster->gpusPerNode;
}

CheckpointSize DdpRules::checkpoint() const
{
    CheckpointSize size;
    size.full16Bit = bytesOf(m_model.parameters(), DType::Bf16);
    size.fullFp32 = bytesOf(m_model.parameters(), DType::Fp32);
    const ModelStates states = modelStates();
    size.shardedTotal = states.parameters + states.optimizerStates;
    size.shardedPerRank = size.shardedTotal;
    size.filesPerRank = 0;
    size.layout = "rank 0 writes model and optimizer state, the other ranks nothing";
    return size;
}

std::vector<Note> DdpRules::assumptions() const
{
    return {{"gradients are reduced in the last micro-step only (no_sync, as Accelerate does)", Provenance::Vendor,
             "Accelerate accumulate()"}};
}

std::vector<Note> DdpRules::excluded() const
{
    if (!packs())
        return {};
    return {{"block constants of the quantised base", Provenance::Assumed, "bitsandbytes functional.py QuantState"}};
}

/// bitsandbytes packs the frozen matrices of blocks (QLoRA); adapters have a dtype of their own (peft).
bool DdpRules::packed(const LayerType& type, const ParameterSpec& parameter) const
{
    return packs() && type.kind == LayerKind::Block && !parameter.trainable && parameter.shape.size() == 2;
}

DType DdpRules::storedIn(const LayerType& type, const ParameterSpec& parameter) const
{
    if (packed(type, parameter))
        return *m_training.lora->baseDtype;
    return parameter.role == ParameterRole::Lora ? m_trained : m_training.precision.load;
}

Bytes DdpRules::storedBytes(const LayerType& type, bool trainableOnly) const
{
    Bytes bytes;
    for (const ParameterSpec& parameter : type.parameters)
        if (parameter.trainable || !trainableOnly)
            bytes += bytesOf(parameter.numel, storedIn(type, parameter)) * parameter.repeat;
    return bytes;
}

/// What layers compute with where it is not the stored weight itself.
void DdpRules::defineCopies(const LayerType& type, const LeafModule& module, int index, TypeSizes& sizes)
{
    Bytes gradient;
    Bytes cast;
    Bytes unpacked;
    Bytes castRead;
    Bytes packedRead;
    for (const int id : module.parameters) {
        const ParameterSpec& parameter = type.parameters[static_cast<std::size_t>(id)];
        const DType stored = storedIn(type, parameter);
        const Bytes computed = bytesOf(parameter.numel, m_compute) * parameter.repeat;
        if (parameter.trainable)
            gradient += bytesOf(parameter.numel, stored) * parameter.repeat;
        if (packed(type, parameter))
            unpacked += computed;
        else if (stored != m_compute)
            cast += computed;
        else
            continue;
        (packed(type, parameter) ? packedRead : castRead) += bytesOf(parameter.numel, stored) * parameter.repeat;
    }
    const auto add = [&](const BufferSpec& spec, Bytes bytes) {
        return bytes == Bytes(0) ? -1 : m_sizes.addBuffer(spec, bytes, index);
    };
    sizes.gradients.push_back(add(kGradient, gradient));
    sizes.casts.push_back(add(kAutocastWeight, cast));
    sizes.unpacked.push_back(add(kUnpackedWeight, unpacked));
    const auto move = [&](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
        return moved == Bytes(0) ? -1 : m_sizes.addPayload({name, formula, source, moved, m_compute});
    };
    sizes.castCopies.push_back(
        move("weights cast to the compute dtype", "(l + c) x numel", "autocast cached_cast", castRead + cast));
    sizes.unpackings.push_back(move("weights dequantised", "packed + c x numel",
                                    "bitsandbytes functional.py dequantize_4bit", packedRead + unpacked));
    sizes.accumulations.push_back(
        move("gradient added to an earlier one", "3 l x numel", "torch AccumulateGrad", gradient * 3));
}

void DdpRules::defineType(int index, TypeSizes& sizes)
{
    const LayerType& type = m_model.layerTypes[static_cast<std::size_t>(index)];
    const Bytes gradients = storedBytes(type, true);
    sizes.parameters = m_sizes.addBuffer(kParameters, storedBytes(type, false), index);
    sizes.moments = m_sizes.addBuffer(
        kMoments, shardStateBytes(m_training, m_model, type.trainableNumel(), m_model.trainableParameters(), m_trained),
        index);
    sizes.buckets = m_sizes.addBuffer(kBuckets, m_options.gradientAsBucketView ? Bytes(0) : gradients, index);
    for (const LeafModule& module : m_activations.modules(index))
        defineCopies(type, module, index, sizes);
    Bytes castBack;
    for (const ParameterSpec& parameter : type.parameters)
        if (const DType stored = storedIn(type, parameter);
            parameter.trainable && stored != m_compute && !recorded()) // shardrun's kernels write the stored dtype
            castBack += (bytesOf(parameter.numel, m_compute) + bytesOf(parameter.numel, stored)) * parameter.repeat;
    sizes.castBack = m_sizes.addPayload(
        {"gradients cast to the stored dtype", "(c + l) x P_l", "torch ToCopyBackward", castBack, m_trained});
    sizes.copyIn = m_sizes.addPayload({"gradients divided and copied to the bucket", "2 l x P_l",
                                       "reducer mark_variable_ready_dense", gradients * 2, m_trained});
}

/// reducer compute_bucket_assignment_by_size, as rebuilt after the first backward: gradients join a bucket in the
/// order in which they arrive until it has reached its limit.
void DdpRules::assignBuckets()
{
    m_buckets.assign(m_model.layers.size(), {});
    std::map<Bytes, Bucket> known; // equal buckets share a payload
    const std::optional<ModuleTensors> index = recorded() ? std::optional<ModuleTensors>(m_activations) : std::nullopt;
    Tensors tensors;
    const Bytes cap = m_options.bucketCap;
    Bytes limit = cap == DdpOptions{}.bucketCap ? kFirstBucket : cap;
    Bytes filled;
    const auto close = [&](std::size_t layer) {
        const auto [like, fresh] = known.emplace(filled, Bucket{});
        if (fresh)
            like->second.payload = m_sizes.addPayload(
                {"gradients", "bucket", "reducer compute_bucket_assignment_by_size", filled, m_trained});
        if (fresh && recorded() && !m_options.gradientAsBucketView)
            like->second.buffer = m_sizes.addBuffer(kBucket, filled);
        m_buckets[layer].push_back({like->second.payload, like->second.buffer, std::exchange(tensors, {})});
        filled = Bytes(0);
        limit = cap;
    };
    for (std::size_t layer = m_model.layers.size(); layer-- > 0;) {
        const LayerType& type = m_model.layer(layer);
        const std::vector<ParameterSpec>& parameters = type.parameters;
        for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter)
            for (std::int64_t i = 0; parameter->trainable && i < parameter->repeat; ++i) {
                filled += bytesOf(parameter->numel, storedIn(type, *parameter));
                if (index)
                    tensors.push_back(
                        index->at(static_cast<int>(layer), static_cast<int>(parameters.rend() - parameter) - 1));
                if (filled >= limit)
                    close(layer);
            }
        if (layer == 0 && filled > Bytes(0))
            close(layer);
    }
}

std::vector<std::string> ddpRefusals(const PlanInput&)
{
    return {};
}

std::unique_ptr<FrameworkRules> makeDdpRules(const PlanInput& input)
{
    return std::make_unique<DdpRules>(input);
}

} // namespace shardwright
