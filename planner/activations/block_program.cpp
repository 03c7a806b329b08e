#include "planner/activations/block_program.hpp"

#include <algorithm>

namespace shardwright {

namespace {

using C = Category;

// What each tensor is. Sources: "HF" transformers modeling_llama.py / modeling_gpt2.py, "FA" flash-attention's autograd
// function, "torch" ATen's derivatives.yaml (which inputs and outputs an operation keeps for its backward).
constexpr BufferSpec kNormFp32{"fp32 copy of a norm's input", "4 T H", "HF LlamaRMSNorm.forward", C::Activations};
constexpr BufferSpec kNormSquare{"fp32 squares inside a norm", "4 T H", "HF LlamaRMSNorm.forward", C::Temporaries};
constexpr BufferSpec kNormScaled{"normalised input in fp32", "4 T H", "HF LlamaRMSNorm.forward", C::Temporaries};
constexpr BufferSpec kNormHat{"normalised input before the norm's weight", "c T H", "HF LlamaRMSNorm.forward",
                              C::Activations};
constexpr BufferSpec kNormStatistics{"mean and reciprocal deviation", "8 T", "torch native_layer_norm", C::Activations};
constexpr BufferSpec kNormOut{"output of a norm", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kQueryLinear{"query before rotary embedding", "c T a d", "HF apply_rotary_pos_emb",
                                  C::Temporaries};
constexpr BufferSpec kKeyLinear{"key before rotary embedding", "c T a_kv d", "HF apply_rotary_pos_emb", C::Temporaries};
constexpr BufferSpec kRotaryTemporary{"rotated half of the query", "c T a d", "HF apply_rotary_pos_emb",
                                      C::Temporaries};
constexpr BufferSpec kQuery{"query", "c T a d", "FA saves q", C::Activations};
constexpr BufferSpec kKey{"key", "c T a_kv d", "FA saves k", C::Activations};
constexpr BufferSpec kValue{"value", "c T a_kv d", "FA saves v", C::Activations};
constexpr BufferSpec kKeyRepeated{"key repeated over the query heads", "c T a d", "HF repeat_kv before SDPA",
                                  C::Activations};
constexpr BufferSpec kValueRepeated{"value repeated over the query heads", "c T a d", "HF repeat_kv before SDPA",
                                    C::Activations};
constexpr BufferSpec kHeadNormFp32{"fp32 copies of query and key in their norms", "4 T (a + a_kv) d",
                                   "HF Qwen3Attention q_norm, k_norm", C::Activations};
constexpr BufferSpec kHeadNormHat{"normalised query and key", "c T (a + a_kv) d", "HF Qwen3Attention q_norm, k_norm",
                                  C::Activations};
constexpr BufferSpec kLatentQuery{"compressed query and its norm", "c T r_q", "HF DeepseekV3Attention", C::Activations};
constexpr BufferSpec kLatentKeyValue{"compressed key-value and its norm", "c T (r_kv + d_r)", "HF DeepseekV3Attention",
                                     C::Activations};
constexpr BufferSpec kScores{"attention scores", "c a s^2 b", "HF eager_attention_forward", C::Temporaries};
constexpr BufferSpec kSoftmax{"attention probabilities in fp32", "4 a s^2 b", "HF eager_attention_forward",
                              C::Activations};
constexpr BufferSpec kProbabilities{"attention probabilities", "c a s^2 b", "HF eager_attention_forward",
                                    C::Activations};
constexpr BufferSpec kAttentionMask{"attention dropout mask", "a s^2 b", "torch native_dropout", C::Activations};
constexpr BufferSpec kLogSumExp{"softmax log-sum-exp", "4 T a", "FA saves softmax_lse", C::Activations};
constexpr BufferSpec kAttentionOut{"attention output", "c T a d", "FA saves out; torch linear", C::Activations};
constexpr BufferSpec kProjected{"output projection", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kResidual{"hidden states after attention", "c T H", "HF decoder layer", C::Activations};
constexpr BufferSpec kDropoutMask{"residual dropout mask", "T H", "torch native_dropout", C::Activations};
constexpr BufferSpec kGate{"gate projection", "c T I", "torch silu", C::Activations};
constexpr BufferSpec kUp{"up projection", "c T I", "torch mul", C::Activations};
constexpr BufferSpec kGateActivated{"activated gate", "c T I", "torch mul", C::Activations};
constexpr BufferSpec kMlpProduct{"input of the down projection", "c T I", "torch linear", C::Activations};
constexpr BufferSpec kFullyConnected{"first MLP matrix's output", "c T I", "torch gelu", C::Activations};
constexpr BufferSpec kGeluPart{"intermediate of the composed GELU", "c T I", "HF NewGELUActivation", C::Activations};
constexpr BufferSpec kMlpOut{"down projection", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kRouterLogits{"router logits and weights", "8 T E", "HF sparse MoE block", C::Activations};
constexpr BufferSpec kExpertInput{"tokens gathered for the experts", "c k T H", "HF sparse MoE block", C::Activations};
constexpr BufferSpec kExpertOutput{"experts' outputs before weighting", "c k T H", "HF sparse MoE block",
                                   C::Activations};
constexpr BufferSpec kExpertWeighted{"weighted outputs of the experts", "c k T H", "HF sparse MoE block",
                                     C::Activations};
constexpr BufferSpec kLoraHidden{"adapter's inner activation", "c T r", "peft LoraLayer", C::Activations};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradInner{"gradient inside the MLP", "c T I", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradHeads{"gradient of query or attention output", "c T a d", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradKeyValue{"gradient of key or value", "c T a_kv d", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradFlash{"fp32 accumulator of the query's gradient", "4 T a d", "FA dq_accum", C::Temporaries};
constexpr BufferSpec kGradScores{"gradient of attention scores", "4 a s^2 b", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradFp32{"fp32 gradient inside a norm", "4 T H", "torch autograd", C::Temporaries};

/// Builds the program of one block step by step.
class BlockWriter {
public:
    BlockWriter(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules)
        : m_context(context), m_modules(modules), m_type(layerType), m_arch(context.model.architecture),
          m_training(context.training), m_c(context.computeBytes())
    {
        m_program.setBoundary(context.hidden);
        const bool rms = m_arch.norm == NormKind::RmsNorm;
        m_fusedNorm = m_training.fusedNorm || m_training.compile || !rms;
        m_policy = m_training.checkpointing == Checkpointing::Selective;
    }

    LayerProgram write()
    {
        const Norm first = norm(ModuleKind::InputNorm, kInput);
        attention(first.out);
        const bool sandwich = countOf(ModuleKind::PostAttentionNorm) > 1; // gemma2: norms behind attention and MLP too
        Norm afterAttention;
        Norm afterMlp;
        if (sandwich) {
            afterAttention = norm(ModuleKind::PostAttentionNorm, m_attentionProjected);
            m_attentionProjected = afterAttention.out;
        }
        int mlpInput = first.out;
        Norm second;
        int residual = kInput;
        if (!m_arch.parallelAttention) {
            m_residual = tensor(kResidual, m_arch.hidden);
            m_program.forward(-1, {kInput, m_attentionProjected}, {m_residual});
            residual = m_residual;
            second = norm(ModuleKind::PostAttentionNorm, m_residual, sandwich ? 1 : 0);
            mlpInput = second.out;
        } else if (find(ModuleKind::PostAttentionNorm) >= 0 || countOf(ModuleKind::InputNorm) > 1) {
            second = norm(ModuleKind::PostAttentionNorm, kInput); // falcon's ln_mlp
            mlpInput = second.out;
        }
        mlp(mlpInput);
        if (sandwich) {
            afterMlp = norm(ModuleKind::PostMlpNorm, m_mlpOut);
            m_mlpOut = afterMlp.out;
        }
        m_program.forward(-1, {residual, m_attentionProjectedIfParallel(), m_mlpOut}, {kOutput});

        const int gradMlpInput = mlpBackward(mlpInput, sandwich ? normThrough(afterMlp, kGradOutput) : kGradOutput);
        if (!m_arch.parallelAttention) {
            const int gradResidual = normBackward(second, gradMlpInput, kGradOutput);
            const int gradAttention =
                attentionBackward(first.out, sandwich ? normThrough(afterAttention, gradResidual) : gradResidual);
            lastNormBackward(first, gradAttention, gradResidual);
        } else {
            const int gradAttention = attentionBackward(first.out, kGradOutput);
            int gradNorm = gradAttention;
            if (mlpInput == first.out) {
                gradNorm = tensor(kGradHidden, m_arch.hidden);
                m_program.backward(-1, {gradAttention, gradMlpInput}, {gradNorm});
                lastNormBackward(first, gradNorm, kGradOutput);
            } else {
                const int gradResidual = normBackward(second, gradMlpInput, kGradOutput);
                lastNormBackward(first, gradNorm, gradResidual);
            }
        }
        if (m_context.variant.checkpointChildren && m_training.checkpointing == Checkpointing::Full) {
            for (const int childInput : {first.out, m_residual, second.out})
                if (childInput >= 0)
                    m_program.keepByPolicy(childInput);
        }
        policy();
        return std::move(m_program);
    }

private:
    struct Norm {
        int module = -1;
        int input = -1;
        int fp32 = -1;
        int hat = -1;
        int statistics = -1;
        int out = -1;
    };

    int m_attentionProjectedIfParallel() const { return m_arch.parallelAttention ? m_attentionProjected : -1; }

    int tensor(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach = 0)
    {
        const std::int64_t each = bytesEach == 0 ? m_c : bytesEach;
        return m_program.tensor(m_context.add(spec, width, each, m_type));
    }

    int square(const BufferSpec& spec, std::int64_t bytesEach)
    {
        return m_program.tensor(m_context.add(spec, m_arch.heads, bytesEach, m_type, /*timesSequence=*/true));
    }

    int find(ModuleKind kind, int skip = 0) const
    {
        for (std::size_t i = 0; i < m_modules.size(); ++i)
            if (m_modules[i].kind == kind && skip-- == 0)
                return static_cast<int>(i);
        return -1;
    }
    int countOf(ModuleKind kind) const
    {
        return static_cast<int>(
            std::count_if(m_modules.begin(), m_modules.end(), [kind](const LeafModule& m) { return m.kind == kind; }));
    }
    /// Whether any module of the kind needs its input for a weight gradient.
    bool trains(ModuleKind kind) const
    {
        return std::any_of(m_modules.begin(), m_modules.end(),
                           [kind](const LeafModule& m) { return m.kind == kind && m.needsInput(); });
    }
    int ifTrains(ModuleKind kind, int slot) const { return trains(kind) ? slot : -1; }

    Norm norm(ModuleKind kind, int input, int skip = 0)
    {
        Norm norm;
        norm.input = input;
        norm.module = find(kind, skip);
        if (norm.module < 0 && kind == ModuleKind::PostAttentionNorm && countOf(ModuleKind::InputNorm) > 1)
            norm.module = find(ModuleKind::InputNorm, 1);
        norm.out = tensor(kNormOut, m_arch.hidden);
        if (m_fusedNorm) {
            norm.statistics = tensor(kNormStatistics, 2, 4);
            m_program.forward(norm.module, {input}, {norm.statistics, norm.out});
            return norm;
        }
        norm.fp32 = tensor(kNormFp32, m_arch.hidden, 4);
        norm.hat = tensor(kNormHat, m_arch.hidden);
        const int squares = tensor(kNormSquare, m_arch.hidden, 4);
        const int scaled = tensor(kNormScaled, m_arch.hidden, 4);
        m_program.forward(norm.module, {input}, {norm.fp32, squares});
        m_program.forward(norm.module, {norm.fp32}, {scaled, norm.hat});
        m_program.forward(norm.module, {norm.hat}, {norm.out});
        return norm;
    }

    /// Gradient of the residual stream below a norm: gradient through the norm plus `gradResidual`.
    int normBackward(const Norm& norm, int gradOut, int gradResidual)
    {
        const int sum = tensor(kGradHidden, m_arch.hidden);
        normBackwardInto(norm, gradOut, gradResidual, sum);
        return sum;
    }
    void lastNormBackward(const Norm& norm, int gradOut, int gradResidual)
    {
        normBackwardInto(norm, gradOut, gradResidual, kGradInput);
    }
    void normBackwardInto(const Norm& norm, int gradOut, int gradResidual, int result)
    {
        const int through = normThrough(norm, gradOut);
        m_program.backward(-1, {through, gradResidual}, {result});
    }
    /// Gradient of a norm's input.
    int normThrough(const Norm& norm, int gradOut)
    {
        const int through = tensor(kGradHidden, m_arch.hidden);
        if (m_fusedNorm) {
            m_program.backward(norm.module, {gradOut, norm.input, norm.statistics}, {through});
        } else {
            const int upcast = tensor(kGradFp32, m_arch.hidden, 4);
            const int product = tensor(kGradFp32, m_arch.hidden, 4);
            const int total = tensor(kGradFp32, m_arch.hidden, 4);
            m_program.backward(norm.module, {gradOut, norm.hat}, {upcast});
            m_program.backward(norm.module, {upcast, norm.fp32}, {product, total});
            m_program.backward(norm.module, {total}, {through});
        }
        return through;
    }

    std::int64_t queryWidth() const { return checkedMultiply(m_arch.heads, m_arch.headDim); }
    std::int64_t keyWidth() const { return checkedMultiply(m_arch.kvHeads, m_arch.headDim); }
    std::int64_t valueWidth() const { return checkedMultiply(m_arch.kvHeads, m_arch.valueHeadDim); }
    std::int64_t outWidth() const { return checkedMultiply(m_arch.heads, m_arch.valueHeadDim); }
    bool latent() const { return m_arch.kvLoraRank > 0; }
    bool rotary() const
    {
        for (const char* learned : {"gpt2", "opt", "bloom", "mpt"})
            if (m_arch.modelType == learned)
                return false;
        return m_arch.modelType != "generic-decoder" || m_arch.norm == NormKind::RmsNorm;
    }
    /// Grouped keys and values are copied out to all query heads before SDPA and eager attention; flash reads them as
    /// they are.
    bool repeats() const
    {
        return m_arch.kvHeads < m_arch.heads && m_training.attention != Attention::Flash && !latent();
    }

    void attention(int normOut)
    {
        const bool eager = m_training.attention == Attention::Eager;
        m_query = tensor(kQuery, queryWidth());
        m_key = tensor(kKey, latent() ? queryWidth() : keyWidth());
        m_value = tensor(kValue, latent() ? outWidth() : valueWidth());
        const int queryLinear = rotary() ? tensor(kQueryLinear, queryWidth()) : m_query;
        const int keyLinear = rotary() && !latent() ? tensor(kKeyLinear, keyWidth()) : m_key;
        m_queryLinear = queryLinear;
        if (latent()) {
            m_latentQuery = tensor(kLatentQuery, 2 * m_arch.qLoraRank);
            m_latentKeyValue = tensor(kLatentKeyValue, 2 * m_arch.kvLoraRank + m_arch.qkRopeHeadDim);
        }
        // Projections in the model's own order; a fused one makes all three.
        const int projections = countOf(ModuleKind::AttentionIn);
        for (int i = 0; i < projections; ++i) {
            const int module = find(ModuleKind::AttentionIn, i);
            if (projections == 1)
                m_program.forward(module, {normOut}, {queryLinear, keyLinear, m_value});
            else if (latent())
                m_program.forward(module, {normOut, m_latentQuery, m_latentKeyValue},
                                  {i == 0 ? m_latentQuery : -1, i == 0 ? m_latentKeyValue : -1,
                                   i == 1 ? queryLinear : -1, i + 1 == projections ? keyLinear : -1,
                                   i + 1 == projections ? m_value : -1});
            else
                m_program.forward(module, {normOut}, {i == 0 ? queryLinear : i == 1 ? keyLinear : m_value});
            adapter(module);
        }
        if (find(ModuleKind::AttentionNorm) >= 0 && !latent()) {
            const std::int64_t width = checkedAdd(queryWidth(), keyWidth());
            m_headNormFp32 = m_fusedNorm ? -1 : tensor(kHeadNormFp32, width, 4);
            m_headNormHat = tensor(kHeadNormHat, width);
            for (int i = 0; i < countOf(ModuleKind::AttentionNorm); ++i)
                m_program.forward(find(ModuleKind::AttentionNorm, i), {queryLinear, keyLinear},
                                  {m_headNormFp32, m_headNormHat});
        }
        if (rotary()) {
            const int rotated = tensor(kRotaryTemporary, queryWidth());
            m_program.forward(-1, {queryLinear}, {rotated, m_query});
            m_program.forward(-1, {keyLinear}, {m_key});
        }
        m_keyRead = m_key;
        m_valueRead = m_value;
        if (repeats()) {
            m_keyRead = tensor(kKeyRepeated, queryWidth());
            m_valueRead = tensor(kValueRepeated, outWidth());
            m_program.forward(-1, {m_key}, {m_keyRead});
            m_program.forward(-1, {m_value}, {m_valueRead});
        }
        m_attentionOut = tensor(kAttentionOut, outWidth());
        if (eager) {
            const int scores = square(kScores, m_c);
            m_softmax = square(kSoftmax, 4);
            m_probabilities = m_c == 4 ? m_softmax : square(kProbabilities, m_c);
            if (m_arch.dropout > 0)
                m_attentionMask = square(kAttentionMask, 1);
            m_program.forward(-1, {m_query, m_keyRead}, {scores});
            m_program.forward(-1, {scores}, {m_softmax});
            m_program.forward(-1, {m_softmax}, {m_probabilities, m_attentionMask});
            m_program.forward(-1, {m_probabilities, m_valueRead}, {m_attentionOut});
        } else {
            m_logSumExp = tensor(kLogSumExp, m_arch.heads, 4);
            m_program.forward(-1, {m_query, m_keyRead, m_valueRead}, {m_attentionOut, m_logSumExp});
        }
        const int out = find(ModuleKind::AttentionOut);
        m_attentionProjected = tensor(kProjected, m_arch.hidden);
        m_program.forward(out, {m_attentionOut}, {m_attentionProjected});
        adapter(out);
        dropout();
    }

    int attentionBackward(int normOut, int gradOut)
    {
        const int out = find(ModuleKind::AttentionOut);
        const int gradAttention = tensor(kGradHeads, outWidth());
        m_program.backward(out, {gradOut, ifTrains(ModuleKind::AttentionOut, m_attentionOut)}, {gradAttention});
        const int gradQuery = tensor(kGradHeads, queryWidth());
        const int gradKey = tensor(repeats() || latent() ? kGradHeads : kGradKeyValue,
                                   repeats() || latent() ? queryWidth() : keyWidth());
        const int gradValue = tensor(repeats() || latent() ? kGradHeads : kGradKeyValue,
                                     repeats() || latent() ? outWidth() : valueWidth());
        if (m_training.attention == Attention::Eager) {
            const int gradProbabilities = square(kGradScores, m_c);
            const int gradScores = square(kGradScores, 4);
            m_program.backward(-1, {gradAttention, m_valueRead, m_probabilities, m_attentionMask},
                               {gradProbabilities, gradValue});
            m_program.backward(-1, {gradProbabilities, m_softmax}, {gradScores});
            m_program.backward(-1, {gradScores, m_query, m_keyRead}, {gradQuery, gradKey});
        } else {
            const int accumulator = tensor(kGradFlash, queryWidth(), 4);
            m_program.backward(-1, {gradAttention, m_query, m_keyRead, m_valueRead, m_attentionOut, m_logSumExp},
                               {accumulator, gradQuery, gradKey, gradValue});
        }
        for (int i = countOf(ModuleKind::AttentionNorm) - 1; i >= 0 && !latent(); --i)
            m_program.backward(find(ModuleKind::AttentionNorm, i), {gradQuery, gradKey, m_headNormFp32, m_headNormHat},
                               {});
        // Input gradients of the projections add up: one running sum and one addend.
        int sum = -1;
        const int projections = countOf(ModuleKind::AttentionIn);
        for (int i = projections - 1; i >= 0; --i) {
            const int module = find(ModuleKind::AttentionIn, i);
            const int read = m_modules[static_cast<std::size_t>(module)].needsInput() ? normOut : -1;
            const int addend = tensor(kGradHidden, m_arch.hidden);
            const int lastUseOfAll = i == 0 ? gradQuery : -1;
            m_program.backward(module,
                               {gradValue, i <= 1 ? gradKey : -1, lastUseOfAll, read, m_latentQuery, m_latentKeyValue},
                               {addend});
            if (sum < 0) {
                sum = addend;
            } else {
                const int next = tensor(kGradHidden, m_arch.hidden);
                m_program.backward(-1, {sum, addend}, {next});
                sum = next;
            }
        }
        return sum;
    }

    void mlp(int input)
    {
        if (find(ModuleKind::ExpertIn) >= 0)
            experts(input);
        else
            dense(input, ModuleKind::MlpIn, ModuleKind::MlpOut, m_arch.ffn);
        dropout();
    }

    void dense(int input, ModuleKind in, ModuleKind out, std::int64_t ffn)
    {
        m_mlpOut = tensor(kMlpOut, m_arch.hidden);
        inner(input, in, ffn, m_inner);
        m_program.forward(find(out), {m_inner.product}, {m_mlpOut});
        adapter(find(out));
    }

    struct Inner {
        int gate = -1;
        int up = -1;
        int activated = -1;
        int product = -1;
        int parts[3] = {-1, -1, -1};
    };

    void inner(int input, ModuleKind in, std::int64_t width, Inner& made)
    {
        const bool gated = m_arch.mlp == MlpKind::Gated;
        made.product = tensor(kMlpProduct, width);
        if (gated) {
            made.gate = tensor(kGate, width);
            made.up = tensor(kUp, width);
            if (!m_training.compile)
                made.activated = tensor(kGateActivated, width);
            const int gateModule = find(in);
            const int upModule = countOf(in) > 1 ? find(in, 1) : gateModule;
            m_program.forward(gateModule, {input}, {made.gate});
            adapter(gateModule);
            m_program.forward(upModule, {input}, {made.up});
            adapter(upModule);
            m_program.forward(-1, {made.gate}, {made.activated});
            m_program.forward(-1, {made.gate, made.activated, made.up}, {made.product});
            return;
        }
        made.gate = tensor(kFullyConnected, width);
        m_program.forward(find(in), {input}, {made.gate});
        adapter(find(in));
        if (composedGelu())
            for (int& part : made.parts)
                part = tensor(kGeluPart, width);
        m_program.forward(-1, {made.gate}, {made.parts[0], made.parts[1], made.parts[2], made.product});
    }

    /// Returns the gradient of the MLP's input.
    int mlpBackward(int input, int gradOut)
    {
        if (find(ModuleKind::ExpertIn) >= 0)
            return expertsBackward(input);
        return innerBackward(input, gradOut, ModuleKind::MlpIn, ModuleKind::MlpOut, m_inner, m_arch.ffn, kGradHidden,
                             m_arch.hidden);
    }

    int innerBackward(int input, int gradOut, ModuleKind in, ModuleKind out, const Inner& made, std::int64_t width,
                      const BufferSpec& resultSpec, std::int64_t resultWidth)
    {
        const int gradProduct = tensor(kGradInner, width);
        m_program.backward(find(out), {gradOut, ifTrains(out, made.product)}, {gradProduct});
        const bool gated = m_arch.mlp == MlpKind::Gated;
        const int gradGate = tensor(kGradInner, width);
        const int inputRead = ifTrains(in, input);
        const int fromGate = tensor(resultSpec, resultWidth);
        if (!gated) {
            m_program.backward(-1, {gradProduct, made.gate, made.parts[0], made.parts[1], made.parts[2]}, {gradGate});
            m_program.backward(find(in), {gradGate, inputRead}, {fromGate});
            return fromGate;
        }
        const int gradUp = tensor(kGradInner, width);
        if (m_training.compile) {
            m_program.backward(-1, {gradProduct, made.gate, made.up}, {gradUp, gradGate});
        } else {
            const int gradActivated = tensor(kGradInner, width);
            m_program.backward(-1, {gradProduct, made.activated, made.up}, {gradUp, gradActivated});
            m_program.backward(-1, {gradActivated, made.gate}, {gradGate});
        }
        const int gateModule = find(in);
        const int upModule = countOf(in) > 1 ? find(in, 1) : gateModule;
        const int fromUp = tensor(resultSpec, resultWidth);
        const int sum = tensor(resultSpec, resultWidth);
        m_program.backward(upModule, {gradUp, inputRead}, {fromUp});
        m_program.backward(gateModule, {gradGate, inputRead}, {fromGate});
        m_program.backward(-1, {fromUp, fromGate}, {sum});
        return sum;
    }

    void experts(int input)
    {
        const std::int64_t routed = std::max<std::int64_t>(1, m_arch.expertsPerToken);
        const std::int64_t routedHidden = checkedMultiply(routed, m_arch.hidden);
        m_routerLogits = tensor(kRouterLogits, m_arch.experts, 8);
        m_program.forward(find(ModuleKind::Router), {input}, {m_routerLogits});
        m_expertInput = tensor(kExpertInput, routedHidden);
        m_program.forward(-1, {input}, {m_expertInput});
        inner(m_expertInput, ModuleKind::ExpertIn, checkedMultiply(routed, m_arch.expertFfn), m_inner);
        m_expertOutput = tensor(kExpertOutput, routedHidden);
        m_expertWeighted = tensor(kExpertWeighted, routedHidden);
        m_program.forward(find(ModuleKind::ExpertOut), {m_inner.product}, {m_expertOutput});
        m_program.forward(-1, {m_expertOutput, m_routerLogits}, {m_expertWeighted});
        m_mlpOut = tensor(kMlpOut, m_arch.hidden);
        m_program.forward(-1, {m_expertWeighted}, {m_mlpOut});
        if (find(ModuleKind::SharedIn) >= 0) {
            const int routedOut = m_mlpOut;
            inner(input, ModuleKind::SharedIn, m_arch.sharedExpertFfn, m_sharedInner);
            const int shared = tensor(kMlpOut, m_arch.hidden);
            m_mlpOut = tensor(kMlpOut, m_arch.hidden);
            m_program.forward(find(ModuleKind::SharedOut), {m_sharedInner.product}, {shared});
            m_program.forward(-1, {routedOut, shared}, {m_mlpOut});
        }
    }

    int expertsBackward(int input)
    {
        const std::int64_t routed = std::max<std::int64_t>(1, m_arch.expertsPerToken);
        const std::int64_t routedHidden = checkedMultiply(routed, m_arch.hidden);
        int gradShared = -1;
        if (find(ModuleKind::SharedIn) >= 0)
            gradShared = innerBackward(input, kGradOutput, ModuleKind::SharedIn, ModuleKind::SharedOut, m_sharedInner,
                                       m_arch.sharedExpertFfn, kGradHidden, m_arch.hidden);
        const int gradWeighted = tensor(kExpertWeighted, routedHidden);
        m_program.backward(-1, {kGradOutput, m_expertOutput, m_routerLogits}, {gradWeighted});
        const int gradExpertInput =
            innerBackward(m_expertInput, gradWeighted, ModuleKind::ExpertIn, ModuleKind::ExpertOut, m_inner,
                          checkedMultiply(routed, m_arch.expertFfn), kExpertInput, routedHidden);
        const int gradInput = tensor(kGradHidden, m_arch.hidden);
        m_program.backward(find(ModuleKind::Router), {gradExpertInput, gradShared, input}, {gradInput});
        return gradInput;
    }

    /// transformers' gelu_new is composed of elementwise operations, each of which keeps its operand.
    bool composedGelu() const
    {
        if (m_training.compile || m_training.implementation != Implementation::HuggingFace)
            return false;
        for (const char* composed : {"gpt2", "gptj", "phi"})
            if (m_arch.modelType == composed)
                return true;
        return false;
    }

    void dropout()
    {
        if (m_arch.dropout <= 0)
            return;
        const int mask = tensor(kDropoutMask, m_arch.hidden, 1);
        m_program.forward(-1, {}, {mask});
        m_program.backward(-1, {mask}, {});
    }

    void adapter(int module)
    {
        if (module < 0 || m_modules[static_cast<std::size_t>(module)].loraRank == 0)
            return;
        const int innerActivation = tensor(kLoraHidden, m_modules[static_cast<std::size_t>(module)].loraRank);
        m_program.forward(module, {}, {innerActivation});
        m_program.backward(-1, {innerActivation}, {});
    }

    /// What selective checkpointing keeps.
    void policy()
    {
        if (!m_policy)
            return;
        if (m_training.implementation == Implementation::Torchtitan) {
            // torchtitan's per-operation policy (torchtitan/models/.../parallelize: _save_list): every second matrix
            // product (1st, 3rd, ... in forward order: wq, wv, w1, w2) and the attention output with its statistics.
            // Eager checkpointing caches all of them; a compiled block saves only what its backward reads, which w2's
            // output is not (the residual sum follows it).
            for (const int slot : {m_queryLinear, m_value, m_attentionOut, m_logSumExp, m_inner.gate,
                                   m_training.compile ? -1 : m_mlpOut})
                if (slot >= 0)
                    m_program.keepByPolicy(slot);
            return;
        }
        // Selective recomputation of arXiv 2205.05198 sec. 5: all but the attention core (scores, softmax, dropout).
        for (int slot = kFirstOwnSlot; slot < static_cast<int>(m_program.slots()); ++slot)
            if (slot != m_softmax && slot != m_probabilities && slot != m_attentionMask)
                m_program.keepByPolicy(slot);
    }

    const ProgramContext& m_context;
    const std::vector<LeafModule>& m_modules;
    int m_type;
    LayerProgram m_program;
    const Architecture& m_arch;
    const Training& m_training;
    std::int64_t m_c;
    bool m_fusedNorm = false;
    bool m_policy = false;
    int m_query = -1, m_queryLinear = -1, m_key = -1, m_value = -1, m_keyRead = -1, m_valueRead = -1;
    int m_headNormFp32 = -1, m_headNormHat = -1;
    int m_latentQuery = -1, m_latentKeyValue = -1;
    int m_softmax = -1, m_probabilities = -1, m_attentionMask = -1, m_logSumExp = -1;
    int m_attentionOut = -1, m_attentionProjected = -1, m_residual = -1, m_mlpOut = -1;
    int m_routerLogits = -1, m_expertInput = -1, m_expertOutput = -1, m_expertWeighted = -1;
    Inner m_inner, m_sharedInner;
};

} // namespace

BufferClassId ProgramContext::add(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach, int layerType,
                                  bool timesSequence) const
{
    if (width == 0)
        return -1;
    classes.push_back({&spec, checkedMultiply(width, bytesEach), timesSequence, layerType});
    return static_cast<BufferClassId>(classes.size()) - 1;
}

LayerProgram blockProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules)
{
    return BlockWriter(context, layerType, modules).write();
}

} // namespace shardwright
