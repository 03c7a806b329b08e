#include "planner/parallelism/model_slice.hpp"

#include <algorithm>

#include <fmt/format.h>

#include "planner/activations/modules.hpp"
#include "planner/parallelism/local_shape.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kVocabularyMultiple = 128; // make_vocab_size_divisible_by, Megatron-LM's default

enum class Cut : std::uint8_t { None, Rows, Columns };

bool isCompression(const std::string& name)
{
    return name.find("_a_proj") != std::string::npos; // latent attention's down projections (q_a_proj, kv_a_proj)
}

/// Column-parallel matrices lose rows (and their biases elements), row-parallel ones columns (their biases stay whole):
/// Megatron-LM, arXiv 1909.08053 sec. 3.
Cut cutOf(ModuleKind kind, const ParameterSpec& parameter, bool splitsVocabulary)
{
    switch (kind) {
    case ModuleKind::Embedding:
        return parameter.role == ParameterRole::Embedding && splitsVocabulary ? Cut::Rows : Cut::None;
    case ModuleKind::Head: return Cut::Rows;
    case ModuleKind::AttentionIn: return isCompression(parameter.module) ? Cut::None : Cut::Rows;
    case ModuleKind::MlpIn:
    case ModuleKind::SharedIn:
    case ModuleKind::ExpertIn: return Cut::Rows;
    case ModuleKind::AttentionOut:
    case ModuleKind::MlpOut:
    case ModuleKind::SharedOut:
    case ModuleKind::ExpertOut: return parameter.shape.size() == 2 ? Cut::Columns : Cut::None;
    default: return Cut::None;
    }
}

void cut(ParameterSpec& parameter, Cut how, std::int64_t parts)
{
    if (how == Cut::None || parts == 1)
        return;
    std::size_t dimension = how == Cut::Rows ? 0 : 1;
    if (parameter.inputFirst && parameter.shape.size() == 2)
        dimension = 1 - dimension;
    parameter.shape[dimension] = ceilDivide(parameter.shape[dimension], parts);
    parameter.numel = 1;
    for (const std::int64_t extent : parameter.shape)
        parameter.numel = checkedMultiply(parameter.numel, extent);
}

class Slicer {
public:
    explicit Slicer(const PlanInput& input)
        : m_whole(input.model), m_parallelism(input.strategy.parallelism), m_shape(localShape(input)),
          m_blocks(blocksOfChunks(input))
    {
        m_vocabulary = paddedVocabulary(input);
        m_splitsVocabulary = m_parallelism.tensor > 1 && m_shape.splitsLoss;
    }

    ModelSlice slice(std::int64_t stage) const
    {
        const std::int64_t p = m_parallelism.pipeline;
        ModelSlice slice;
        slice.whole = &m_whole;
        slice.stage = stage;
        slice.stages = p;
        slice.alike = {stage};
        Model& model = slice.model;
        model.id = m_parallelism.pipeline > 1 ? fmt::format("{} stage {}", m_whole.id, stage) : m_whole.id;
        model.source = m_whole.source;
        model.architecture = architecture();
        for (const LayerType& type : m_whole.layerTypes)
            model.layerTypes.push_back(cutType(type));
        const std::vector<std::int64_t> first = firstBlocks();
        for (std::int64_t chunk = 0; chunk < m_parallelism.virtualStages; ++chunk) {
            const std::int64_t place = chunk * p + stage;
            const auto at = static_cast<std::size_t>(place);
            addChunk(slice, first[at], m_blocks[at], place == 0, at + 1 == m_blocks.size());
        }
        slice.firstBlock = first[static_cast<std::size_t>(stage)];
        if (p > 1 && m_whole.architecture.tiedEmbedding)
            model.architecture.tiedEmbedding = false; // each of the two stages holds a tensor of its own
        return slice;
    }

    /// Stages that hold the same have the same key.
    std::string keyOf(std::int64_t stage) const
    {
        const std::int64_t p = m_parallelism.pipeline;
        std::string key = fmt::format("{}{}", stage == 0, stage + 1 == p);
        const std::vector<std::int64_t> first = firstBlocks();
        for (std::int64_t chunk = 0; chunk < m_parallelism.virtualStages; ++chunk) {
            const auto at = static_cast<std::size_t>(chunk * p + stage);
            for (std::int64_t block = first[at]; block < first[at] + m_blocks[at]; ++block)
                key += fmt::format(" {}", blockTypes()[static_cast<std::size_t>(block)]);
            key += "|";
        }
        return key;
    }

private:
    std::vector<int> blockTypes() const
    {
        std::vector<int> types;
        for (const int type : m_whole.layers)
            if (m_whole.layerTypes[static_cast<std::size_t>(type)].kind == LayerKind::Block)
                types.push_back(type);
        return types;
    }

    std::vector<std::int64_t> firstBlocks() const
    {
        std::vector<std::int64_t> first(m_blocks.size(), 0);
        for (std::size_t i = 1; i < first.size(); ++i)
            first[i] = first[i - 1] + m_blocks[i - 1];
        return first;
    }

    Architecture architecture() const
    {
        const std::int64_t t = m_parallelism.tensor;
        Architecture a = m_whole.architecture;
        a.vocab = m_splitsVocabulary ? m_vocabulary / t : m_vocabulary;
        a.heads = ceilDivide(a.heads, t);
        a.kvHeads = a.kvHeads > 0 ? ceilDivide(a.kvHeads, t) : 0;
        a.ffn = ceilDivide(a.ffn, t);
        a.expertFfn = ceilDivide(a.expertFfn, m_parallelism.expertTensorRanks());
        a.sharedExpertFfn = ceilDivide(a.sharedExpertFfn, t);
        return a;
    }

    LayerType cutType(const LayerType& whole) const
    {
        LayerType type = whole;
        const std::int64_t t = m_parallelism.tensor;
        for (const LeafModule& module : leafModules(whole))
            for (const int index : module.parameters) {
                ParameterSpec& parameter = type.parameters[static_cast<std::size_t>(index)];
                const bool vocabulary =
                    parameter.role == ParameterRole::Embedding || parameter.role == ParameterRole::Head;
                if (vocabulary && parameter.shape[0] == m_whole.architecture.vocab)
                    pad(parameter);
                const bool fewerKeys = m_whole.architecture.kvHeads % t != 0 && isKeyOrValue(parameter);
                // Fewer key heads than ranks: ranks that share a head hold a copy of it.
                const bool expert = parameter.role == ParameterRole::Expert;
                cut(parameter, cutOf(module.kind, parameter, m_splitsVocabulary),
                    fewerKeys ? m_whole.architecture.kvHeads
                    : expert  ? m_parallelism.expertTensorRanks()
                              : t);
                if (expert)
                    parameter.repeat = ceilDivide(parameter.repeat, m_parallelism.expert);
            }
        return type;
    }

    bool isKeyOrValue(const ParameterSpec& parameter) const
    {
        const std::string& name = parameter.module;
        return name.find("k_proj") != std::string::npos || name.find("v_proj") != std::string::npos;
    }

    void pad(ParameterSpec& parameter) const
    {
        parameter.numel = parameter.numel / parameter.shape[0] * m_vocabulary;
        parameter.shape[0] = m_vocabulary;
    }

    void addChunk(ModelSlice& slice, std::int64_t firstBlock, std::int64_t blocks, bool first, bool last) const
    {
        std::vector<int>& layers = slice.model.layers;
        StageChunk chunk;
        chunk.first = static_cast<int>(layers.size());
        chunk.receivesInput = !first;
        chunk.sendsOutput = !last;
        std::int64_t block = 0;
        for (const int type : m_whole.layers) {
            const LayerKind kind = m_whole.layerTypes[static_cast<std::size_t>(type)].kind;
            const bool here = kind == LayerKind::Block       ? block >= firstBlock && block < firstBlock + blocks
                              : kind == LayerKind::Embedding ? first
                                                             : last;
            block += kind == LayerKind::Block ? 1 : 0;
            if (!here)
                continue;
            layers.push_back(type);
            if (m_parallelism.pipeline > 1 && m_whole.architecture.tiedEmbedding &&
                (kind == LayerKind::Embedding || kind == LayerKind::Head))
                ownTensor(slice, type);
        }
        chunk.end = static_cast<int>(layers.size());
        slice.chunks.push_back(chunk);
    }

    /// A tied embedding stands on the first stage and on the last (megatron/core/models/common/language_module:
    /// setup_embeddings_and_output_layer), kept equal by an all-reduce of its gradients.
    void ownTensor(ModelSlice& slice, int type) const
    {
        slice.tiedAcrossStages = true;
        LayerType& layer = slice.model.layerTypes[static_cast<std::size_t>(type)];
        if (layer.kind != LayerKind::Head || !layer.parameters.empty())
            return;
        for (const LayerType& other : slice.model.layerTypes)
            for (const ParameterSpec& parameter : other.parameters)
                if (parameter.role == ParameterRole::Embedding) {
                    ParameterSpec head = parameter;
                    head.name = "weight";
                    head.module.clear();
                    head.role = ParameterRole::Head;
                    layer.parameters.push_back(head);
                }
    }

    const Model& m_whole;
    const Parallelism& m_parallelism;
    const LocalShape m_shape;
    std::vector<std::int64_t> m_blocks; // of each chunk
    std::int64_t m_vocabulary = 0;
    bool m_splitsVocabulary = false;
};

std::int64_t blocksOf(const Model& model)
{
    return std::count_if(model.layers.begin(), model.layers.end(), [&](int type) {
        return model.layerTypes[static_cast<std::size_t>(type)].kind == LayerKind::Block;
    });
}

/// Fewest elements that the fullest of `parts` contiguous parts can hold, and which items each part takes then.
/// deepspeed/runtime/utils.py partition_balanced.
std::vector<std::int64_t> partitionBalanced(const std::vector<std::int64_t>& weights, std::int64_t parts)
{
    std::int64_t low = 0;
    std::int64_t high = 0;
    for (const std::int64_t weight : weights) {
        low = std::max(low, weight);
        high = checkedAdd(high, weight);
    }
    const auto fill = [&](std::int64_t limit) {
        std::vector<std::int64_t> counts(1, 0);
        std::int64_t held = 0;
        for (std::size_t i = 0; i < weights.size(); ++i) {
            const auto left = static_cast<std::int64_t>(weights.size() - i); // items for the parts still to come
            const std::int64_t toCome = parts - static_cast<std::int64_t>(counts.size());
            if (counts.back() > 0 && (held + weights[i] > limit || left <= toCome)) {
                counts.push_back(0);
                held = 0;
            }
            held += weights[i];
            ++counts.back();
        }
        return counts;
    };
    while (low < high) {
        const std::int64_t middle = low + (high - low) / 2;
        if (static_cast<std::int64_t>(fill(middle).size()) <= parts)
            high = middle;
        else
            low = middle + 1;
    }
    return fill(low);
}

} // namespace

std::int64_t paddedVocabulary(const PlanInput& input)
{
    const std::int64_t vocabulary = input.model.architecture.vocab;
    const bool megatron =
        std::holds_alternative<MegatronOptions>(input.strategy.options) ||
        (input.training.implementation == Implementation::Megatron && !input.strategy.parallelism.none());
    if (!megatron)
        return vocabulary;
    return roundUp(vocabulary, checkedMultiply(kVocabularyMultiple, input.strategy.parallelism.tensor));
}

std::vector<std::int64_t> blocksOfChunks(const PlanInput& input)
{
    const Parallelism& parallelism = input.strategy.parallelism;
    const std::int64_t blocks = blocksOf(input.model);
    const std::int64_t chunks = checkedMultiply(parallelism.pipeline, parallelism.virtualStages);
    std::vector<std::int64_t> counts(static_cast<std::size_t>(chunks), blocks / chunks);
    if (blocks % chunks == 0)
        return counts;
    if (std::holds_alternative<DeepSpeedOptions>(input.strategy.options)) {
        // PipelineModule partition_method "parameters", DeepSpeed's default: the embedding and the head weigh in.
        std::vector<std::int64_t> weights;
        std::vector<bool> block;
        for (std::size_t layer = 0; layer < input.model.layers.size(); ++layer) {
            const LayerType& type = input.model.layer(layer);
            const bool tiedHead = type.kind == LayerKind::Head && type.parameters.empty();
            weights.push_back(tiedHead ? input.model.layer(0).numel() : type.numel());
            block.push_back(type.kind == LayerKind::Block);
        }
        const std::vector<std::int64_t> layers = partitionBalanced(weights, chunks);
        std::fill(counts.begin(), counts.end(), 0);
        std::size_t next = 0;
        for (std::size_t part = 0; part < layers.size() && part < counts.size(); ++part)
            for (std::int64_t i = 0; i < layers[part]; ++i)
                counts[part] += block[next++] ? 1 : 0;
        return counts;
    }
    // torchtitan (distributed/pipeline_parallel.py generate_llm_fqn_per_model_part): embedding and head count as a
    // layer each; what does not divide goes to the first stages.
    const std::int64_t effective = blocks + 2;
    std::int64_t left = blocks;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk) {
        std::int64_t share = effective / chunks + (chunk < effective % chunks ? 1 : 0);
        share -= chunk == 0 ? 1 : 0;
        share -= chunk + 1 == chunks ? 1 : 0;
        counts[static_cast<std::size_t>(chunk)] = std::max<std::int64_t>(0, std::min(left, share));
        left -= counts[static_cast<std::size_t>(chunk)];
    }
    counts.back() += left;
    return counts;
}

std::vector<std::string> sliceRefusals(const PlanInput& input)
{
    std::vector<std::string> reasons;
    const Parallelism& parallelism = input.strategy.parallelism;
    const Architecture& a = input.model.architecture;
    const std::int64_t gpus = input.cluster.gpus();
    const std::int64_t t = parallelism.tensor;
    const auto refuse = [&](std::string reason) { reasons.push_back(std::move(reason)); };
    if (gpus % parallelism.modelRanks() != 0)
        refuse(fmt::format("{} GPUs are no multiple of tensor x pipeline x context = {} x {} x {} = {}", gpus, t,
                           parallelism.pipeline, parallelism.context, parallelism.modelRanks()));
    if (a.heads % t != 0)
        refuse(fmt::format("{} attention heads cannot be divided over {} tensor-parallel ranks", a.heads, t));
    if (a.kvHeads > 0 && a.kvHeads % t != 0 && t % a.kvHeads != 0)
        refuse(fmt::format("{} key-value heads neither divide over {} tensor-parallel ranks nor divide their number",
                           a.kvHeads, t));
    const std::int64_t expertTensor = parallelism.expertTensorRanks();
    struct Width {
        std::int64_t elements;
        const char* name;
        std::int64_t ranks;
    };
    for (const Width& width : {Width{a.ffn, "MLP width", t}, Width{a.expertFfn, "expert width", expertTensor},
                               Width{a.sharedExpertFfn, "shared expert width", t}})
        if (width.elements % width.ranks != 0)
            refuse(fmt::format("{} {} cannot be divided over {} tensor-parallel ranks", width.name, width.elements,
                               width.ranks));
    if (parallelism.expertTensor > 0 && a.experts == 0)
        refuse("expert_tensor needs a mixture of experts; the model has none");
    else if (expertTensor != 1 && expertTensor != t)
        refuse(fmt::format("expert_tensor {} is planned as 1 or as the {} tensor-parallel ranks", expertTensor, t));
    else if (expertTensor == 1 && t > 1 && a.experts > 0 && !parallelism.sequenceParallel)
        refuse("expert_tensor 1 beside tensor parallelism needs sequence_parallel: ranks route tokens of their own");
    if (parallelism.sequenceParallel && t > 1 &&
        input.training.sequenceLength % checkedMultiply(t, parallelism.context) != 0)
        refuse(fmt::format("sequence parallelism needs a sequence length that {} tensor-parallel ranks divide; {} "
                           "tokens do not",
                           t, input.training.sequenceLength / parallelism.context));
    const bool ulysses = parallelism.context > 1 && parallelism.exchange == ContextExchange::Ulysses;
    if (ulysses) {
        const std::int64_t split = checkedMultiply(t, parallelism.context);
        if (input.training.sequenceLength % parallelism.context != 0)
            refuse(fmt::format("{} tokens of a sequence cannot be divided over {} ranks", input.training.sequenceLength,
                               parallelism.context));
        for (const auto& [heads, name] : {std::pair{a.heads, "attention"}, std::pair{a.kvHeads, "key-value"}})
            if (heads > 0 && heads % split != 0)
                refuse(fmt::format("{} {} heads cannot be divided over {} ranks: Ulysses gives each whole sequences of "
                                   "some heads",
                                   heads, name, split));
    }
    if (parallelism.context > 1 && !ulysses &&
        input.training.sequenceLength % checkedMultiply(2, parallelism.context) != 0)
        refuse(fmt::format("context parallelism gives each of {} ranks two pieces of every sequence (the causal mask "
                           "would load them unevenly otherwise): {} tokens are no multiple of {}",
                           parallelism.context, input.training.sequenceLength, 2 * parallelism.context));
    const Attention attention = input.training.attention;
    if (parallelism.context > 1 && (attention == Attention::Eager || attention == Attention::MaskedSdpa))
        refuse(
            "context parallelism is planned with fused attention (flash or sdpa): a ring puts its pieces together by "
            "their log-sum-exp");
    const std::int64_t blocks = blocksOf(input.model);
    const std::int64_t chunks = checkedMultiply(parallelism.pipeline, parallelism.virtualStages);
    if (blocks < chunks)
        refuse(fmt::format("{} blocks are fewer than the {} chunks of the pipeline", blocks, chunks));
    const bool interleaved = parallelism.schedule == PipelineSchedule::Interleaved;
    if (parallelism.virtualStages > 1 && !interleaved)
        refuse(fmt::format("virtual_stages {} needs schedule \"interleaved\"", parallelism.virtualStages));
    if (parallelism.pipeline == 1 && parallelism.virtualStages > 1)
        refuse("virtual_stages needs a pipeline of more than one stage");
    const std::int64_t microBatches = input.training.gradientAccumulation;
    if (interleaved && parallelism.pipeline > 1 && microBatches % parallelism.pipeline != 0)
        refuse(fmt::format("the interleaved schedule needs micro-batches in multiples of the {} stages; there are {} "
                           "(gradient_accumulation)",
                           parallelism.pipeline, microBatches));
    if (parallelism.expert > 1) {
        if (a.experts == 0)
            refuse("expert parallelism needs a mixture of experts; the model has none");
        else if (a.experts % parallelism.expert != 0)
            refuse(fmt::format("{} experts cannot be divided over {} expert-parallel ranks", a.experts,
                               parallelism.expert));
        const std::int64_t ranks = checkedMultiply(input.ranks(), expertTensor == 1 ? t : 1);
        if (ranks % parallelism.expert != 0)
            refuse(fmt::format("expert-parallel ranks are data-parallel ranks too{}: {} is no divisor of {}",
                               expertTensor == 1 && t > 1 ? ", and tensor-parallel ones with expert_tensor 1" : "",
                               parallelism.expert, ranks));
    }
    if (input.training.lora && t > 1)
        refuse("adapters (LoRA) under tensor parallelism are not planned: frameworks split them in different ways");
    return reasons;
}

std::vector<ModelSlice> sliceModel(const PlanInput& input)
{
    const Slicer slicer(input);
    std::vector<ModelSlice> slices;
    std::vector<std::string> keys;
    for (std::int64_t stage = 0; stage < input.strategy.parallelism.pipeline; ++stage) {
        const std::string key = slicer.keyOf(stage);
        const auto known = std::find(keys.begin(), keys.end(), key);
        if (known != keys.end()) {
            // Earlier stages hold more micro-batches in flight: the first of the alike needs the most memory.
            slices[static_cast<std::size_t>(known - keys.begin())].alike.push_back(stage);
            continue;
        }
        keys.push_back(key);
        slices.push_back(slicer.slice(stage));
    }
    return slices;
}

const Model& PlanInput::wholeModel() const
{
    return slice == nullptr ? model : *slice->whole;
}

bool needsSlices(const PlanInput& input)
{
    if (input.slice != nullptr)
        return false;
    return !input.strategy.parallelism.none() || std::holds_alternative<MegatronOptions>(input.strategy.options);
}

std::string nameOfStage(const ModelSlice& slice)
{
    if (slice.alike.size() == 1)
        return fmt::format("pipeline stage {} of {}", slice.stage + 1, slice.stages);
    return fmt::format("pipeline stages {} to {} of {}", slice.alike.front() + 1, slice.alike.back() + 1, slice.stages);
}

} // namespace shardwright
