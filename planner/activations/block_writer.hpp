#pragma once

// Writes the program of one block: its steps in the order that the modelling code runs them. Internal to
// block_program.cpp, block_attention.cpp, block_mlp.cpp and block_experts.cpp.

#include "planner/activations/norm_steps.hpp"

namespace shardwright {

class BlockWriter {
public:
    BlockWriter(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules);

    LayerProgram write();

private:
    /// What an MLP (or the experts) makes inside.
    struct Inner {
        ModuleKind in, out;
        std::int64_t width = 0;
        bool fused = false; // gate and up are one tensor, `gate`
        int gate = -1;      // plain: the first matrix's output
        int up = -1;
        int activated = -1;
        int product = -1;
        int tanh = -1, half = -1, onePlus = -1; // composed GELU
    };

    int tensor(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach = 0);
    int square(const BufferSpec& spec, std::int64_t bytesEach); // a s^2 b
    /// Of the residual stream: T H, or T H / t where the sequence is split.
    int hidden(const BufferSpec& spec) { return m_program.tensor(m_sequence.add(spec, m_arch.hidden, m_c, m_type)); }
    /// T H whatever is split.
    int wholeHidden(const BufferSpec& spec) { return tensor(spec, m_arch.hidden); }

    int find(ModuleKind kind, int skip = 0) const;
    int countOf(ModuleKind kind) const;
    /// `slot` when a module of the kind needs its input for a weight gradient, else -1.
    int ifTrains(ModuleKind kind, int slot) const;
    bool eager() const { return m_training.attention == Attention::Eager; }
    bool latent() const { return m_arch.kvLoraRank > 0; }

    NormTensors norm(ModuleKind kind, int input, int skip = 0);
    NormTensors normOf(int module, int input, std::int64_t width, std::int64_t rows);
    int normThrough(const NormTensors& norm, int gradOut);
    void normBackwardInto(const NormTensors& norm, int gradOut, int gradResidual, int result);
    int dropout(int input, int& mask);
    int dropoutBackward(int gradOut, int mask);
    void adapter(int module);
    void policy();

    // Between tensor-parallel ranks (block_parallel.cpp); without them each returns what it is given.
    const LocalShape& local() const { return m_context.variant.local; }
    int collective(OpKind kind, std::string_view name, std::string_view formula) const;
    int collective(OpKind kind, std::string_view name, std::string_view formula, std::int64_t bytesPerToken) const;
    Beside besideProducts(bool byLinear) const;
    /// `byLinear`: one of Transformer Engine's linear layers reads or makes it, not an expert.
    int gatherInput(int normOut, bool byLinear = true);
    int reduceOutput(int partial, bool byLinear = true);
    int gatherGradient(int grad, bool byLinear = true);
    int reduceGradient(int partial, bool besideWeights);
    /// The matrices that read one input, in the order of their backward, and the gradients of their outputs.
    struct Branch {
        int module;
        int grad;
    };
    int columnBackward(const std::vector<Branch>& branches, int normOut, int gathered, const BufferSpec& spec);

    std::int64_t queryWidth() const { return checkedMultiply(m_arch.heads, m_arch.headDim); }
    std::int64_t keyWidth() const { return checkedMultiply(latent() ? m_arch.heads : m_arch.kvHeads, m_arch.headDim); }
    std::int64_t valueWidth() const
    {
        return checkedMultiply(latent() ? m_arch.heads : m_arch.kvHeads, m_arch.valueHeadDim);
    }
    std::int64_t outWidth() const { return checkedMultiply(m_arch.heads, m_arch.valueHeadDim); }

    void attention(const NormTensors& before);
    void project(int normOut);
    void projectLatent(int normOut);
    void rotate();
    void repeatHeads();
    void eagerAttention(int normOut);
    int attentionBackward(const NormTensors& before, int gradOut);
    void eagerAttentionBackward(int gradOut, int gradQuery, int gradKey, int gradValue);
    int projectionsBackward(int normOut, int gradQuery, int gradKey, int gradValue);
    int latentBackward(int normOut, int gradQuery, int gradKey, int gradValue);
    int rotateBackward(int grad, const BufferSpec& spec, std::int64_t width);

    void mlp(const NormTensors& before);
    int mlpBackward(const NormTensors& before, int gradOut);
    Inner inner(int input, ModuleKind in, ModuleKind out, std::int64_t width, bool fused);
    /// `column`: `input` is what tensor-parallel ranks share, of which `gathered` is the whole.
    int innerBackward(int input, int gradOut, const Inner& made, const BufferSpec& resultSpec, std::int64_t resultWidth,
                      bool column = false, int gathered = -1);
    int composedGeluBackward(const Inner& made, int gradProduct);
    void experts(int input);
    void sharedExpert(int input);
    int sharedExpertBackward(int input, int gradOut);
    int expertsBackward(int gradOut);
    /// Ranks of a tensor-parallel group send tokens of their own to whole experts.
    bool routesOwnTokens() const { return local().expertSplit() > 1; }
    int exchangeExperts(bool forward, int tensor, const BufferSpec& spec, std::int64_t width);
    bool ulysses() const { return local().context > 1 && local().exchange == ContextExchange::Ulysses; }
    int exchangeHeads(bool forward, int tensor, const BufferSpec& spec, std::int64_t width);
    void exchangeKeysAndValues();
    void exchangeKeysAndValuesBackward();
    void finishExchange(int gradKey);
    std::int64_t keysAndValues() const;
    std::int64_t ofBusiest(std::int64_t width) const; // on the busiest expert-parallel rank

    const ProgramContext& m_context;
    const std::vector<LeafModule>& m_modules;
    const int m_type;
    const Architecture& m_arch;
    const Training& m_training;
    const FamilyRules& m_rules;
    const std::int64_t m_c;          // bytes of the compute dtype
    const ProgramContext m_sequence; // of the residual stream
    bool m_alongSequence = false;    // what is made belongs to a rank's own part of the sequence
    LayerProgram m_program;

    int m_queryLinear = -1, m_keyLinear = -1, m_fusedQkv = -1;
    int m_query = -1, m_key = -1, m_value = -1;             // as attention gets them
    int m_queryRead = -1, m_keyRead = -1, m_valueRead = -1; // as its matrix products read them
    NormTensors m_queryNorm, m_keyNorm, m_queryLatent, m_keyValueLatent;
    int m_softcap = -1, m_softmax = -1, m_probabilities = -1, m_attentionMask = -1, m_dropped = -1, m_logSumExp = -1;
    int m_attentionHeads = -1, m_attentionOut = -1, m_attentionProjected = -1, m_residual = -1, m_mlpOut = -1;
    int m_attentionInput = -1, m_mlpInput = -1; // what column-parallel matrices read
    int m_attentionResidualMask = -1, m_mlpResidualMask = -1;
    int m_exchanged = -1;  // keys and values of the other context-parallel ranks
    int m_dispatched = -1; // tokens that came to this rank's experts
    int m_routerInput = -1, m_routerLogits = -1, m_expertInput = -1, m_expertOutput = -1;
    int m_gradShared = -1;  // gradient of the input through the shared expert
    int m_sharedInput = -1; // what the shared expert reads
    int m_sharedOut = -1;   // of the shared expert, where a gate scales it
    Inner m_inner{}, m_sharedInner{};
};

} // namespace shardwright
