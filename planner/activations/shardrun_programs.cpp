#include "planner/activations/shardrun_programs.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr std::string_view kSource = "shardrun: operands of its kernels";
constexpr BufferSpec kNormOut{"output of a norm", "c T H", kSource, C::Activations};
constexpr BufferSpec kRootMeanSquare{"reciprocal root mean square", "4 T", kSource, C::Activations};
constexpr BufferSpec kMeanAndDeviation{"mean and reciprocal deviation", "8 T", kSource, C::Activations};
constexpr BufferSpec kQuery{"query", "c T a d", kSource, C::Activations};
constexpr BufferSpec kKeyOrValue{"key or value", "c T a_kv d", kSource, C::Activations};
constexpr BufferSpec kQkv{"query, key and value together", "3 c T H", kSource, C::Activations};
constexpr BufferSpec kQueryMeanSquare{"reciprocal root mean square of queries", "4 T a", kSource, C::Activations};
constexpr BufferSpec kKeyMeanSquare{"reciprocal root mean square of keys", "4 T a_kv", kSource, C::Activations};
constexpr BufferSpec kContext{"attention output", "c T a d", kSource, C::Activations};
constexpr BufferSpec kLogSumExp{"log-sum-exp of the attention scores", "4 T a", kSource, C::Activations};
constexpr BufferSpec kAddend{"output of attention or MLP", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kResidual{"hidden states after attention", "c T H", kSource, C::Activations};
constexpr BufferSpec kInner{"inside the MLP", "c T I", kSource, C::Activations};
constexpr BufferSpec kTokenRows{"embeddings of the tokens", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kRowLogSumExp{"log-sum-exp of each row of logits", "4 T", kSource, C::Logits};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kGradQuery{"gradient of query or attention output", "c T a d", kSource, C::Temporaries};
constexpr BufferSpec kGradKeyOrValue{"gradient of key or value", "c T a_kv d", kSource, C::Temporaries};
constexpr BufferSpec kGradQkv{"gradient of query, key and value", "3 c T H", kSource, C::Temporaries};
constexpr BufferSpec kGradInner{"gradient inside the MLP", "c T I", kSource, C::Temporaries};

/// Leaf modules in forward order, as core/model_families builds the blocks.
enum LlamaModule : int { kInputNorm, kQ, kK, kV, kO, kMlpNorm, kGate, kUp, kDown };
constexpr int kQueryNorm = kV + 1; // where there are norms of queries and keys, which come before the others
constexpr int kKeyNorm = kV + 2;
enum Gpt2Module : int { kNorm1, kJoined, kProjection, kNorm2, kWiden, kNarrow };

/// The steps that all of these layers are made of, appended to a program.
class Steps {
public:
    Steps(const ProgramContext& context, int layerType) : m_context(context), m_type(layerType)
    {
        program.setBoundary(context.hidden);
    }

    struct Norm {
        int module = -1, input = -1, out = -1, statistics = -1;
    };

    int tensor(const BufferSpec& spec, std::int64_t width)
    {
        return program.tensor(m_context.add(spec, width, m_context.computeBytes(), m_type));
    }
    int statistics(const BufferSpec& spec, std::int64_t width)
    {
        return program.tensor(m_context.add(spec, width, 4, m_type));
    }
    int hidden(const BufferSpec& spec) { return tensor(spec, arch().hidden); }
    const Architecture& arch() const { return m_context.model.architecture; }

    Norm norm(int module, int input, int out = -1)
    {
        const bool mean = arch().norm == NormKind::LayerNorm;
        Norm made{module, input, out >= 0 ? out : hidden(kNormOut), -1};
        made.statistics = statistics(mean ? kMeanAndDeviation : kRootMeanSquare, mean ? 2 : 1);
        program.forward(module, {input}, {made.out, made.statistics}).runs(Kernel::Norm);
        return made;
    }
    /// RMSNorm of each head.
    Norm headNorm(int module, int input, int out, const BufferSpec& statistic, std::int64_t heads)
    {
        const Norm made{module, input, out, statistics(statistic, heads)};
        program.forward(module, {input}, {made.out, made.statistics}).runs(Kernel::Norm);
        return made;
    }
    /// The weights' gradient reads both tensors once more.
    int normBackward(const Norm& norm, int gradient, int result = -1)
    {
        const int made = result >= 0 ? result : hidden(kGradHidden);
        program.backward(norm.module, {gradient, norm.input, norm.statistics}, {made})
            .kernels(2, {gradient, norm.input})
            .runs(Kernel::NormBackward);
        return made;
    }

    int linear(int module, int input, int out)
    {
        program.forward(module, {input}, {out}).runs(Kernel::Linear);
        return out;
    }
    int linearBackward(int module, int gradient, int input, int result)
    {
        program.backward(module, {gradient, input}, {result}).runs(Kernel::LinearBackward);
        return result;
    }

    int add(int left, int right, int out)
    {
        program.forward(-1, {left, right}, {out}).runs(Kernel::Add);
        return out;
    }
    /// In place: what it drops it draws again in backward, so that nothing is kept.
    void drop(Kernel kernel, int x)
    {
        if (drops(kernel))
            program.forward(-1, {x}, {}).kernels(1, {x}).runs(kernel);
    }
    /// The gradient of what was dropped from; `gradient` itself where nothing was.
    int dropBackward(Kernel kernel, int gradient)
    {
        if (!drops(kernel))
            return gradient;
        const int made = hidden(kGradHidden);
        program.backward(-1, {gradient}, {made})
            .runs(kernel == Kernel::Dropout ? Kernel::DropoutBackward : Kernel::MlpDropoutBackward);
        return made;
    }

    int addBackward(int left, int right, int out)
    {
        program.backward(-1, {left, right}, {out}).runs(Kernel::Add);
        return out;
    }

    /// Gradient of what several matrices read: the sum of their gradients, in the order given.
    struct Reader {
        int module;
        int gradient;
    };
    int readersBackward(std::initializer_list<Reader> readers, int input)
    {
        int sum = -1;
        for (const Reader& reader : readers) {
            const int next = linearBackward(reader.module, reader.gradient, input, hidden(kGradHidden));
            sum = sum < 0 ? next : addBackward(sum, next, hidden(kGradHidden));
        }
        return sum;
    }

    /// What recomputation finds there: selective checkpointing keeps what matrix products and attention made and
    /// recomputes norms and activation functions; wrapped children of a block keep their inputs.
    void policy(std::initializer_list<int> products, std::initializer_list<int> childInputs)
    {
        const Checkpointing checkpointing = m_context.training.checkpointing;
        if (checkpointing == Checkpointing::Selective)
            keep(products);
        else if (m_context.variant.checkpointChildren && checkpointing == Checkpointing::Full)
            keep(childInputs);
    }

    LayerProgram program;

private:
    bool drops(Kernel kernel) const
    {
        const bool embeds = m_type < 0 && kernel == Kernel::Dropout;
        return (embeds ? arch().embeddingDropout : arch().residualDropout) > 0;
    }

    void keep(std::initializer_list<int> slots)
    {
        for (const int slot : slots)
            program.keepByPolicy(slot);
    }

    const ProgramContext& m_context;
    const int m_type;
};

LayerProgram llamaBlock(const ProgramContext& context, int layerType)
{
    Steps steps(context, layerType);
    LayerProgram& program = steps.program;
    const Architecture& a = steps.arch();
    const std::int64_t queryWidth = checkedMultiply(a.heads, a.headDim);
    const std::int64_t keyWidth = checkedMultiply(a.kvHeads, a.headDim);

    const Steps::Norm first = steps.norm(kInputNorm, kInput);
    const int rawQuery = steps.linear(kQ, first.out, steps.tensor(kQuery, queryWidth));
    const int rawKey = steps.linear(kK, first.out, steps.tensor(kKeyOrValue, keyWidth));
    const int value = steps.linear(kV, first.out, steps.tensor(kKeyOrValue, keyWidth));
    Steps::Norm queryNorm;
    Steps::Norm keyNorm;
    if (a.qkNorm) {
        queryNorm = steps.headNorm(kQueryNorm, rawQuery, steps.tensor(kQuery, queryWidth), kQueryMeanSquare, a.heads);
        keyNorm = steps.headNorm(kKeyNorm, rawKey, steps.tensor(kKeyOrValue, keyWidth), kKeyMeanSquare, a.kvHeads);
    }
    const int query = a.qkNorm ? queryNorm.out : rawQuery;
    const int key = a.qkNorm ? keyNorm.out : rawKey;
    const auto after = [&](int module) { return a.qkNorm ? module + 2 : module; };
    program.forward(-1, {query, key}, {}).kernels(1, {query, key}).runs(Kernel::Rotate);
    const int attended = steps.tensor(kContext, queryWidth);
    const int logSumExp = steps.statistics(kLogSumExp, a.heads);
    program.forward(-1, {query, key, value}, {attended, logSumExp}).is(WorkKind::Attention).runs(Kernel::Attention);
    const int projected = steps.linear(after(kO), attended, steps.hidden(kAddend));
    const int residual = steps.add(kInput, projected, steps.hidden(kResidual));
    const Steps::Norm second = steps.norm(after(kMlpNorm), residual);
    const int gate = steps.linear(after(kGate), second.out, steps.tensor(kInner, a.ffn));
    const int up = steps.linear(after(kUp), second.out, steps.tensor(kInner, a.ffn));
    const int product = steps.tensor(kInner, a.ffn);
    program.forward(-1, {gate, up}, {product}).runs(Kernel::SwiGlu);
    const int mlpOut = steps.linear(after(kDown), product, steps.hidden(kAddend));
    steps.add(residual, mlpOut, kOutput);

    const int gradProduct = steps.linearBackward(after(kDown), kGradOutput, product, steps.tensor(kGradInner, a.ffn));
    const int gradGate = steps.tensor(kGradInner, a.ffn);
    const int gradUp = steps.tensor(kGradInner, a.ffn);
    program.backward(-1, {gradProduct, gate, up}, {gradGate, gradUp}).runs(Kernel::SwiGluBackward);
    const int gradMlp = steps.readersBackward({{after(kUp), gradUp}, {after(kGate), gradGate}}, second.out);
    const int throughSecond = steps.normBackward(second, gradMlp);
    const int gradResidual = steps.addBackward(throughSecond, kGradOutput, steps.hidden(kGradHidden));
    const int gradAttended =
        steps.linearBackward(after(kO), gradResidual, attended, steps.tensor(kGradQuery, queryWidth));
    const int gradQuery = steps.tensor(kGradQuery, queryWidth);
    const int gradKey = steps.tensor(kGradKeyOrValue, keyWidth);
    const int gradValue = steps.tensor(kGradKeyOrValue, keyWidth);
    program.backward(-1, {gradAttended, query, key, value, attended, logSumExp}, {gradQuery, gradKey, gradValue})
        .is(WorkKind::Attention)
        .runs(Kernel::AttentionBackward);
    program.backward(-1, {gradQuery, gradKey}, {}).kernels(1, {gradQuery, gradKey}).runs(Kernel::RotateBackward);
    const int gradRawKey =
        a.qkNorm ? steps.normBackward(keyNorm, gradKey, steps.tensor(kGradKeyOrValue, keyWidth)) : gradKey;
    const int gradRawQuery =
        a.qkNorm ? steps.normBackward(queryNorm, gradQuery, steps.tensor(kGradQuery, queryWidth)) : gradQuery;
    const int gradAttention = steps.readersBackward({{kV, gradValue}, {kK, gradRawKey}, {kQ, gradRawQuery}}, first.out);
    steps.addBackward(steps.normBackward(first, gradAttention), gradResidual, kGradInput);

    steps.policy({rawQuery, rawKey, value, attended, logSumExp, residual, gate, up}, {first.out, residual, second.out});
    return std::move(program);
}

LayerProgram gpt2Block(const ProgramContext& context, int layerType)
{
    Steps steps(context, layerType);
    LayerProgram& program = steps.program;
    const Architecture& a = steps.arch();
    const std::int64_t joinedWidth = checkedMultiply(3, a.hidden);

    const Steps::Norm first = steps.norm(kNorm1, kInput);
    const int joined = steps.linear(kJoined, first.out, steps.tensor(kQkv, joinedWidth));
    const int attended = steps.hidden(kContext);
    const int logSumExp = steps.statistics(kLogSumExp, a.heads);
    program.forward(-1, {joined}, {attended, logSumExp}).is(WorkKind::Attention).runs(Kernel::SplitAttention);
    const int projected = steps.linear(kProjection, attended, steps.hidden(kAddend));
    steps.drop(Kernel::Dropout, projected);
    const int residual = steps.add(kInput, projected, steps.hidden(kResidual));
    const Steps::Norm second = steps.norm(kNorm2, residual);
    const int wide = steps.linear(kWiden, second.out, steps.tensor(kInner, a.ffn));
    const int activated = steps.tensor(kInner, a.ffn);
    program.forward(-1, {wide}, {activated}).runs(Kernel::Gelu);
    const int mlpOut = steps.linear(kNarrow, activated, steps.hidden(kAddend));
    steps.drop(Kernel::MlpDropout, mlpOut);
    steps.add(residual, mlpOut, kOutput);

    const int gradNarrow = steps.dropBackward(Kernel::MlpDropout, kGradOutput);
    const int gradActivated = steps.linearBackward(kNarrow, gradNarrow, activated, steps.tensor(kGradInner, a.ffn));
    const int gradWide = steps.tensor(kGradInner, a.ffn);
    program.backward(-1, {gradActivated, wide}, {gradWide}).runs(Kernel::GeluBackward);
    const int gradMlp = steps.linearBackward(kWiden, gradWide, second.out, steps.hidden(kGradHidden));
    const int throughSecond = steps.normBackward(second, gradMlp);
    const int gradResidual = steps.addBackward(throughSecond, kGradOutput, steps.hidden(kGradHidden));
    const int gradProjected = steps.dropBackward(Kernel::Dropout, gradResidual);
    const int gradAttended = steps.linearBackward(kProjection, gradProjected, attended, steps.hidden(kGradHidden));
    const int gradJoined = steps.tensor(kGradQkv, joinedWidth);
    program.backward(-1, {gradAttended, joined, attended, logSumExp}, {gradJoined})
        .is(WorkKind::Attention)
        .runs(Kernel::SplitAttentionBackward);
    const int gradAttention = steps.linearBackward(kJoined, gradJoined, first.out, steps.hidden(kGradHidden));
    steps.addBackward(steps.normBackward(first, gradAttention), gradResidual, kGradInput);

    steps.policy({joined, attended, logSumExp, residual, wide}, {first.out, residual, second.out});
    return std::move(program);
}

LayerProgram embedding(const ProgramContext& context, std::size_t tables)
{
    Steps steps(context, -1);
    LayerProgram& program = steps.program;
    program.setSlotClass(kInput, -1); // tokens stand in the batch and have no gradient
    program.setSlotClass(kGradInput, -1);
    const bool positions = tables > 1; // a second table
    const int rows = positions ? steps.hidden(kTokenRows) : static_cast<int>(kOutput);
    program.forward(0, {}, {rows}).runs(Kernel::Embedding);
    if (positions)
        program.forward(1, {rows}, {kOutput}).runs(Kernel::EmbeddingAdd);
    steps.drop(Kernel::Dropout, kOutput);
    const int gradient = steps.dropBackward(Kernel::Dropout, kGradOutput);
    if (positions)
        program.backward(1, {gradient}, {}).runs(Kernel::EmbeddingAddBackward);
    program.backward(0, {gradient}, {}).runs(Kernel::EmbeddingBackward);
    return std::move(program);
}

LayerProgram finalNorm(const ProgramContext& context)
{
    Steps steps(context, -1);
    const Steps::Norm norm = steps.norm(0, kInput, kOutput);
    steps.normBackward(norm, kGradOutput, kGradInput);
    return std::move(steps.program);
}

LayerProgram head(const ProgramContext& context, BufferClassId logits)
{
    Steps steps(context, -1);
    steps.program.setSlotClass(kOutput, logits);
    steps.program.setSlotClass(kGradOutput, logits);
    steps.linear(0, kInput, kOutput);
    steps.linearBackward(0, kGradOutput, kInput, kGradInput);
    return std::move(steps.program);
}

} // namespace

LayerProgram shardrunProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules,
                             BufferClassId logits)
{
    switch (context.model.layerTypes[static_cast<std::size_t>(layerType)].kind) {
    case LayerKind::Embedding: return embedding(context, modules.size());
    case LayerKind::FinalNorm: return finalNorm(context);
    case LayerKind::Head: return head(context, logits);
    case LayerKind::Block: break;
    }
    return context.model.architecture.norm == NormKind::LayerNorm ? gpt2Block(context, layerType)
                                                                  : llamaBlock(context, layerType);
}

LayerProgram shardrunLossProgram(const ProgramContext& context, BufferClassId logits)
{
    LayerProgram program;
    program.setSlotClass(kInput, logits);
    const int rowLogSumExp = program.tensor(context.add(kRowLogSumExp, 1, 4));
    program.forward(-1, {kInput}, {rowLogSumExp}).kernels(1, {kInput}).runs(Kernel::CrossEntropy); // maximum, then sum
    program.backward(-1, {kInput, rowLogSumExp}, {}).kernels(1, {kInput}).runs(Kernel::CrossEntropyBackward);
    program.gradientInPlace();
    return program;
}

} // namespace shardwright
