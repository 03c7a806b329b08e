#include "executor/layers/layer_kernels.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "core/layout.hpp"
#include "executor/layers/device.hpp"

namespace shardwright {

namespace {

constexpr std::array<OperandCount, kKernelCount> kOperands{{
    {0, 0}, // None
    {1, 1}, // Embedding
    {1, 1}, // EmbeddingAdd
    {1, 2}, // Norm
    {1, 1}, // Linear
    {2, 0}, // Rotate
    {3, 2}, // Attention
    {1, 2}, // SplitAttention
    {2, 1}, // SwiGlu
    {1, 1}, // Gelu
    {2, 1}, // Add
    {2, 1}, // CrossEntropy
    {2, 0}, // EmbeddingBackward
    {1, 0}, // EmbeddingAddBackward
    {3, 1}, // NormBackward
    {2, 1}, // LinearBackward
    {2, 0}, // RotateBackward
    {6, 3}, // AttentionBackward
    {4, 1}, // SplitAttentionBackward
    {3, 2}, // SwiGluBackward
    {2, 1}, // GeluBackward
    {3, 0}, // CrossEntropyBackward
    {1, 0}, // Dropout
    {1, 0}, // MlpDropout
    {1, 1}, // DropoutBackward
    {1, 1}, // MlpDropoutBackward
}};

/// A module's matrix y = x W^T + b, or the table of an embedding.
struct Matrix {
    std::int64_t in = 0;
    std::int64_t out = 0;
    bool inputFirst = false; // stored (in, out)
};

struct Module {
    std::vector<int> parameters; // indices into LayerType::parameters
    Matrix matrix;
    std::int64_t width = 0; // of its first parameter's rows: what a norm normalises
    std::int64_t heads = 1; // it works on each of a token's so many rows: norms of queries and keys
};

[[noreturn]] void misuse(Kernel kernel, const std::string& what)
{
    throw std::logic_error(fmt::format("kernel {}: {}", nameOf(kernel), what));
}

} // namespace

OperandCount operandsOf(Kernel kernel)
{
    return kOperands[static_cast<std::size_t>(kernel)];
}

struct LayerKernels::Parts {
    Parts(const Model& model_, const Training& training, std::int64_t meanOver_, Device& device_)
        : model(model_), arch(model_.architecture), device(device_), index(model_),
          compute(training.precision.mixed.value_or(training.precision.load)), tokens(training.tokensPerMicroBatch()),
          length(training.sequenceLength), meanOver(meanOver_), frequencies(rotaryFrequencies(arch, length))
    {
        for (const LayerType& type : model.layerTypes) {
            std::vector<Module> ofType;
            for (const ModuleParameters& owned : parametersByModule(type)) {
                Module module;
                module.parameters = owned.parameters;
                const ParameterSpec& first = type.parameters[static_cast<std::size_t>(owned.parameters.front())];
                module.width = first.shape.back();
                if (owned.name.ends_with("q_norm"))
                    module.heads = arch.heads;
                else if (owned.name.ends_with("k_norm"))
                    module.heads = arch.kvHeads;
                if (first.shape.size() == 2) {
                    const bool turned = first.inputFirst;
                    module.matrix = {first.shape[turned ? 0 : 1], first.shape[turned ? 1 : 0], turned};
                }
                ofType.push_back(std::move(module));
            }
            modules.push_back(std::move(ofType));
        }
    }

    /// Null where there is none.
    const Module* find(int layer, int module) const
    {
        if (layer < 0 || static_cast<std::size_t>(layer) >= model.layers.size() || module < 0)
            return nullptr;
        const std::vector<Module>& ofType =
            modules[static_cast<std::size_t>(model.layers[static_cast<std::size_t>(layer)])];
        return static_cast<std::size_t>(module) < ofType.size() ? &ofType[static_cast<std::size_t>(module)] : nullptr;
    }
    const Module& moduleOf(Kernel kernel, int layer, int module) const
    {
        const Module* found = find(layer, module);
        if (found == nullptr)
            misuse(kernel, fmt::format("layer {} has no module {}", layer, module));
        return *found;
    }

    // Elements of the tensors there are.
    std::int64_t hidden() const { return checkedMultiply(tokens, arch.hidden); }
    std::int64_t inner() const { return checkedMultiply(tokens, arch.ffn); }
    std::int64_t queries() const { return checkedMultiply(tokens, checkedMultiply(arch.heads, arch.headDim)); }
    std::int64_t keys() const { return checkedMultiply(tokens, checkedMultiply(arch.kvHeads, arch.headDim)); }
    std::int64_t logits() const { return checkedMultiply(tokens, arch.vocab); }
    std::int64_t perHead() const { return checkedMultiply(tokens, arch.heads); }

    struct Needed {
        std::int64_t elements;
        DType dtype;
    };
    /// Operands of a kernel as it needs them, reads before writes.
    std::vector<Needed> operands(Kernel kernel, int layer, int module) const;
    void check(const KernelCall& call) const;
    void checkWeights(const KernelCall& call) const;
    void checkModule(const KernelCall& call) const;
    void checkTokens(const KernelCall& call) const;

    void linear(const KernelCall& call);
    void linearBackward(const KernelCall& call);
    void normBackward(const KernelCall& call);
    void rotate(const KernelCall& call, bool inverse);
    void attention(const KernelCall& call);
    void attentionBackward(const KernelCall& call);
    NormShape normShape(Kernel kernel, int layer, int module) const
    {
        const Module& norm = moduleOf(kernel, layer, module);
        return {checkedMultiply(tokens, norm.heads), norm.width, arch.norm == NormKind::LayerNorm,
                static_cast<float>(arch.numerics.normEpsilon)};
    }
    /// `layer`: position in Model::layers, the embedding before the blocks.
    AttentionShape attentionShape(int layer) const
    {
        return {tokens / length,
                length,
                arch.heads,
                arch.kvHeads,
                arch.headDim,
                arch.numerics.windowOf(layer - 1),
                dropoutAt(layer, DropoutPlace::Probabilities)};
    }
    Dropout dropoutAt(int layer, DropoutPlace place) const
    {
        const double probability = place == DropoutPlace::Probabilities ? arch.attentionDropout
                                   : layer == 0                         ? arch.embeddingDropout
                                                                        : arch.residualDropout;
        return {static_cast<float>(probability), dropoutKey(seed, layer, place), firstSequence};
    }
    void drop(const KernelCall& call, DropoutPlace place) const
    {
        device.dropout(dropoutAt(call.layer, place), call.reads[0],
                       call.writes.empty() ? call.reads[0] : call.writes[0], tokens, arch.hidden, length);
    }
    HeadsView whole(TensorView view, std::int64_t heads) const { return {view, 0, heads * arch.headDim}; }
    /// Query (0), key (1) or value (2) of GPT-2's joined projection.
    HeadsView third(TensorView view, int which) const { return {view, which * arch.hidden, 3 * arch.hidden}; }
    static TensorView labelsOf(const TensorView& batch)
    {
        const std::int64_t count = batch.elements / 2;
        return {batch.as<std::int64_t>() + count, count, DType::Int64};
    }

    const Model& model;
    const Architecture& arch;
    Device& device;
    TensorIndex index;
    DType compute;
    std::int64_t tokens, length, meanOver;
    RotaryFrequencies frequencies;
    std::uint64_t seed = 0;
    std::int64_t firstSequence = 0;
    std::vector<std::vector<Module>> modules; // by layer type
    double loss = 0;
};

std::vector<LayerKernels::Parts::Needed> LayerKernels::Parts::operands(Kernel kernel, int layer, int module) const
{
    const Needed states{hidden(), compute};
    const Needed query{queries(), compute};
    const Needed key{keys(), compute};
    const Needed joined{checkedMultiply(3, hidden()), compute};
    const Needed wide{inner(), compute};
    const Needed logSumExp{perHead(), DType::Fp32};
    const Needed batch{checkedMultiply(2, tokens), DType::Int64};
    const Needed scores{logits(), compute};
    const Needed rowLogSumExp{tokens, DType::Fp32};
    const auto normed = [&] {
        const NormShape shape = normShape(kernel, layer, module);
        return Needed{checkedMultiply(shape.rows, shape.width), compute};
    };
    const auto statistic = [&] {
        const NormShape shape = normShape(kernel, layer, module);
        return Needed{checkedMultiply(shape.rows, shape.mean ? 2 : 1), DType::Fp32};
    };
    const auto matrix = [&] { return moduleOf(kernel, layer, module).matrix; };
    const auto into = [&] { return Needed{checkedMultiply(tokens, matrix().in), compute}; };
    const auto outOf = [&] { return Needed{checkedMultiply(tokens, matrix().out), compute}; };
    switch (kernel) {
    case Kernel::None: return {};
    case Kernel::Embedding: return {batch, states};
    case Kernel::EmbeddingAdd: return {states, states};
    case Kernel::Norm: return {normed(), normed(), statistic()};
    case Kernel::Linear: return {into(), outOf()};
    case Kernel::Rotate:
    case Kernel::RotateBackward: return {query, key};
    case Kernel::Attention: return {query, key, key, query, logSumExp};
    case Kernel::SplitAttention: return {joined, states, logSumExp};
    case Kernel::SwiGlu: return {wide, wide, wide};
    case Kernel::Gelu: return {wide, wide};
    case Kernel::Add: return {states, states, states};
    case Kernel::CrossEntropy: return {scores, batch, rowLogSumExp};
    case Kernel::EmbeddingBackward: return {states, batch};
    case Kernel::EmbeddingAddBackward: return {states};
    case Kernel::NormBackward: return {normed(), normed(), statistic(), normed()};
    case Kernel::LinearBackward: return {outOf(), into(), into()};
    case Kernel::AttentionBackward: return {query, query, key, key, query, logSumExp, query, key, key};
    case Kernel::SplitAttentionBackward: return {states, joined, states, logSumExp, joined};
    case Kernel::SwiGluBackward: return {wide, wide, wide, wide, wide};
    case Kernel::GeluBackward: return {wide, wide, wide};
    case Kernel::CrossEntropyBackward: return {scores, rowLogSumExp, batch};
    case Kernel::Dropout:
    case Kernel::MlpDropout: return {states};
    case Kernel::DropoutBackward:
    case Kernel::MlpDropoutBackward: return {states, states};
    }
    return {};
}

void LayerKernels::Parts::check(const KernelCall& call) const
{
    const OperandCount count = operandsOf(call.kernel);
    if (call.reads.size() != static_cast<std::size_t>(count.reads) ||
        call.writes.size() != static_cast<std::size_t>(count.writes))
        misuse(call.kernel, fmt::format("reads {} and writes {} tensors, not {} and {}", count.reads, count.writes,
                                        call.reads.size(), call.writes.size()));
    const std::vector<Needed> needed = operands(call.kernel, call.layer, call.module);
    for (std::size_t i = 0; i < needed.size(); ++i) {
        const TensorView& view = i < call.reads.size() ? call.reads[i] : call.writes[i - call.reads.size()];
        if (view.elements != needed[i].elements || view.dtype != needed[i].dtype || view.data == nullptr)
            misuse(call.kernel, fmt::format("operand {} is {} elements of {}, not {} of {}", i, view.elements,
                                            nameOf(view.dtype), needed[i].elements, nameOf(needed[i].dtype)));
    }
    checkWeights(call);
    checkModule(call);
    checkTokens(call);
}

/// Whether the module's weights are such as the kernel reads.
void LayerKernels::Parts::checkModule(const KernelCall& call) const
{
    const std::vector<TensorView>& w = call.weights;
    const auto each = [&](std::int64_t elements) {
        return std::all_of(w.begin(), w.end(), [&](const TensorView& view) { return view.elements == elements; });
    };
    bool right = true;
    switch (call.kernel) {
    case Kernel::Embedding:
    case Kernel::EmbeddingBackward: right = w.size() == 1 && each(checkedMultiply(arch.vocab, arch.hidden)); break;
    case Kernel::EmbeddingAdd:
    case Kernel::EmbeddingAddBackward:
        right = w.size() == 1 && w[0].elements % arch.hidden == 0 && w[0].elements / arch.hidden >= length;
        break;
    case Kernel::Norm:
    case Kernel::NormBackward:
        right = !w.empty() && w.size() <= 2 && each(normShape(call.kernel, call.layer, call.module).width);
        break;
    case Kernel::Linear:
    case Kernel::LinearBackward: {
        const Matrix matrix = moduleOf(call.kernel, call.layer, call.module).matrix;
        right = !w.empty() && w.size() <= 2 && matrix.out > 0 &&
                w[0].elements == checkedMultiply(matrix.in, matrix.out) &&
                (w.size() == 1 || w[1].elements == matrix.out);
        break;
    }
    default: break;
    }
    if (!right)
        misuse(call.kernel, fmt::format("module {} of layer {} is none that it works on", call.module, call.layer));
}

/// Rows of tables are taken by them.
void LayerKernels::Parts::checkTokens(const KernelCall& call) const
{
    for (const TensorView& view : call.reads) {
        if (view.dtype != DType::Int64)
            continue;
        const auto* first = view.as<std::int64_t>();
        const auto* wrong = std::find_if(first, first + view.elements,
                                         [&](std::int64_t token) { return token < 0 || token >= arch.vocab; });
        if (wrong != first + view.elements)
            misuse(call.kernel, fmt::format("token {} is none of the vocabulary of {}", *wrong, arch.vocab));
    }
}

void LayerKernels::Parts::checkWeights(const KernelCall& call) const
{
    const Module* module = find(call.layer, call.module);
    const std::vector<int> none;
    const std::vector<int>& parameters = module != nullptr ? module->parameters : none;
    const auto position = static_cast<std::size_t>(call.layer);
    const auto fits = [&](const std::vector<TensorView>& views, bool anyDtype) {
        bool all = views.size() == parameters.size();
        for (std::size_t i = 0; all && i < views.size(); ++i) {
            const ParameterSpec& spec = model.layer(position).parameters[static_cast<std::size_t>(parameters[i])];
            all =
                views[i].data != nullptr && views[i].elements == spec.numel && (anyDtype || views[i].dtype == compute);
        }
        return all;
    };
    if (!fits(call.weights, false))
        misuse(call.kernel, "weights are not its module's, whole and in the compute dtype");
    if (!call.weightGradients.empty() && !fits(call.weightGradients, true))
        misuse(call.kernel, "gradients of weights are not those of its module");
}

void LayerKernels::Parts::linear(const KernelCall& call)
{
    const Matrix matrix = moduleOf(call.kernel, call.layer, call.module).matrix;
    const bool bias = call.weights.size() > 1;
    if (bias)
        device.fillRows(call.weights[1], call.writes[0], tokens, matrix.out);
    device.multiply(call.reads[0], Transpose::No, call.weights[0], matrix.inputFirst ? Transpose::No : Transpose::Yes,
                    call.writes[0], tokens, matrix.out, matrix.in, bias);
}

void LayerKernels::Parts::linearBackward(const KernelCall& call)
{
    const Matrix matrix = moduleOf(call.kernel, call.layer, call.module).matrix;
    const TensorView& gradient = call.reads[0];
    const TensorView& x = call.reads[1];
    device.multiply(gradient, Transpose::No, call.weights[0], matrix.inputFirst ? Transpose::Yes : Transpose::No,
                    call.writes[0], tokens, matrix.in, matrix.out);
    if (call.weightGradients.empty())
        return;
    if (matrix.inputFirst)
        device.multiply(x, Transpose::Yes, gradient, Transpose::No, call.weightGradients[0], matrix.in, matrix.out,
                        tokens);
    else
        device.multiply(gradient, Transpose::Yes, x, Transpose::No, call.weightGradients[0], matrix.out, matrix.in,
                        tokens);
    if (call.weightGradients.size() > 1)
        device.sumRows(gradient, call.weightGradients[1], tokens, matrix.out);
}

void LayerKernels::Parts::normBackward(const KernelCall& call)
{
    const NormShape shape = normShape(call.kernel, call.layer, call.module);
    device.normGradient(shape, call.reads[0], call.reads[1], call.reads[2], call.weights[0], call.writes[0]);
    if (!call.weightGradients.empty())
        device.normWeightsGradient(shape, call.reads[0], call.reads[1], call.reads[2], call.weightGradients[0],
                                   call.weightGradients.size() > 1 ? call.weightGradients[1] : TensorView{});
}

void LayerKernels::Parts::rotate(const KernelCall& call, bool inverse)
{
    RotateShape shape{tokens, length, arch.heads, arch.headDim, &frequencies};
    device.rotate(shape, call.reads[0], inverse);
    shape.heads = arch.kvHeads;
    device.rotate(shape, call.reads[1], inverse);
}

void LayerKernels::Parts::attention(const KernelCall& call)
{
    const auto& [x, made] = std::tie(call.reads, call.writes);
    const HeadsView context = whole(made[0], arch.heads);
    if (call.kernel == Kernel::SplitAttention)
        device.attention(attentionShape(call.layer), third(x[0], 0), third(x[0], 1), third(x[0], 2), context, made[1]);
    else
        device.attention(attentionShape(call.layer), whole(x[0], arch.heads), whole(x[1], arch.kvHeads),
                         whole(x[2], arch.kvHeads), context, made[1]);
}

void LayerKernels::Parts::attentionBackward(const KernelCall& call)
{
    const auto& [x, made] = std::tie(call.reads, call.writes);
    const HeadsView gradient = whole(x[0], arch.heads);
    if (call.kernel == Kernel::SplitAttentionBackward)
        device.attentionGradient(attentionShape(call.layer),
                                 {gradient, third(x[1], 0), third(x[1], 1), third(x[1], 2), whole(x[2], arch.heads),
                                  x[3], third(made[0], 0), third(made[0], 1), third(made[0], 2)});
    else
        device.attentionGradient(attentionShape(call.layer),
                                 {gradient, whole(x[1], arch.heads), whole(x[2], arch.kvHeads),
                                  whole(x[3], arch.kvHeads), whole(x[4], arch.heads), x[5], whole(made[0], arch.heads),
                                  whole(made[1], arch.kvHeads), whole(made[2], arch.kvHeads)});
}

LayerKernels::LayerKernels(const Model& model, const Training& training, std::int64_t meanOver, Device& device)
    : m_parts(std::make_unique<Parts>(model, training, meanOver, device))
{
}

LayerKernels::~LayerKernels() = default;

std::vector<LayerKernels::Made> LayerKernels::made(Kernel kernel, int layer, int module) const
{
    const std::vector<Parts::Needed> needed = m_parts->operands(kernel, layer, module);
    std::vector<Made> made;
    for (auto i = static_cast<std::size_t>(operandsOf(kernel).reads); i < needed.size(); ++i)
        made.push_back({bytesOf(needed[i].elements, needed[i].dtype), needed[i].dtype});
    return made;
}

std::vector<std::int32_t> LayerKernels::tensorsOf(int layer, int module) const
{
    std::vector<std::int32_t> tensors;
    if (const Module* found = m_parts->find(layer, module))
        for (const int parameter : found->parameters)
            tensors.push_back(m_parts->index.at(static_cast<std::size_t>(layer), static_cast<std::size_t>(parameter)));
    return tensors;
}

void LayerKernels::beginBatch(std::uint64_t seed, std::int64_t firstSequence)
{
    m_parts->seed = seed;
    m_parts->firstSequence = firstSequence;
}

void LayerKernels::run(const KernelCall& call)
{
    Parts& parts = *m_parts;
    parts.check(call);
    Device& device = parts.device;
    const auto& [x, y] = std::tie(call.reads, call.writes);
    const std::int64_t tokens = parts.tokens;
    const std::int64_t hidden = parts.arch.hidden;
    const std::int64_t vocab = parts.arch.vocab;
    const bool trains = !call.weightGradients.empty();
    switch (call.kernel) {
    case Kernel::None: break;
    case Kernel::Embedding: device.embed(x[0], call.weights[0], y[0], tokens, hidden); break;
    case Kernel::EmbeddingAdd: device.addPositions(x[0], call.weights[0], y[0], tokens, hidden, parts.length); break;
    case Kernel::Norm:
        device.norm(parts.normShape(call.kernel, call.layer, call.module), x[0], call.weights[0],
                    call.weights.size() > 1 ? call.weights[1] : TensorView{}, y[0], y[1]);
        break;
    case Kernel::Linear: parts.linear(call); break;
    case Kernel::Rotate: parts.rotate(call, false); break;
    case Kernel::Attention:
    case Kernel::SplitAttention: parts.attention(call); break;
    case Kernel::SwiGlu: device.swiGlu(x[0], x[1], y[0]); break;
    case Kernel::Gelu: device.gelu(x[0], y[0]); break;
    case Kernel::Add: device.add(x[0], x[1], y[0]); break;
    case Kernel::CrossEntropy:
        parts.loss += device.crossEntropy(x[0], Parts::labelsOf(x[1]), y[0], tokens, vocab) /
                      static_cast<double>(checkedMultiply(tokens, parts.meanOver));
        break;
    case Kernel::EmbeddingBackward:
        if (trains)
            device.embedGradient(x[0], x[1], call.weightGradients[0], tokens, hidden, vocab);
        break;
    case Kernel::EmbeddingAddBackward:
        if (trains)
            device.addPositionsGradient(x[0], call.weightGradients[0], tokens, hidden, parts.length,
                                        call.weightGradients[0].elements / hidden);
        break;
    case Kernel::NormBackward: parts.normBackward(call); break;
    case Kernel::LinearBackward: parts.linearBackward(call); break;
    case Kernel::RotateBackward: parts.rotate(call, true); break;
    case Kernel::AttentionBackward:
    case Kernel::SplitAttentionBackward: parts.attentionBackward(call); break;
    case Kernel::SwiGluBackward: device.swiGluGradient(x[0], x[1], x[2], y[0], y[1]); break;
    case Kernel::GeluBackward: device.geluGradient(x[0], x[1], y[0]); break;
    case Kernel::CrossEntropyBackward:
        device.crossEntropyGradient(
            x[0], Parts::labelsOf(x[2]), x[1], tokens, vocab,
            static_cast<float>(1.0 / static_cast<double>(checkedMultiply(tokens, parts.meanOver))));
        break;
    case Kernel::Dropout:
    case Kernel::DropoutBackward: parts.drop(call, DropoutPlace::Attention); break;
    case Kernel::MlpDropout:
    case Kernel::MlpDropoutBackward: parts.drop(call, DropoutPlace::Mlp); break;
    }
}

double LayerKernels::takeLoss()
{
    return std::exchange(m_parts->loss, 0.0);
}

} // namespace shardwright
