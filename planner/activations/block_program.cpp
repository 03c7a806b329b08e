#include "planner/activations/block_program.hpp"

#include <algorithm>

#include "planner/activations/block_writer.hpp"

namespace shardwright {

namespace {

using C = Category;

// Sources: "HF" the modelling code of transformers, "torch" ATen's derivatives.yaml (which inputs and outputs an
// operation keeps for its backward) or the autograd engine.
constexpr BufferSpec kResidual{"hidden states after attention", "c T H", "HF decoder layer", C::Activations};
constexpr BufferSpec kDropoutMask{"residual dropout mask", "T H", "torch native_dropout", C::Activations};
constexpr BufferSpec kDropped{"hidden states after dropout", "c T H", "torch native_dropout", C::Temporaries};
constexpr BufferSpec kLoraHidden{"adapter's inner activation", "c T r", "peft LoraLayer", C::Activations};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", "torch autograd", C::Temporaries};

} // namespace

BlockWriter::BlockWriter(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules)
    : m_context(context), m_modules(modules), m_type(layerType), m_arch(context.model.architecture),
      m_training(context.training), m_rules(context.rules), m_c(context.computeBytes()),
      m_sequence(context.alongSequence())
{
    m_program.setBoundary(context.hidden);
    if (m_training.compile) {
        std::vector<bool> products;
        for (const LeafModule& module : modules)
            products.push_back(module.outFeatures > 0);
        m_program.fusePointwise(std::move(products));
    }
}

/// A compiled block keeps what feeds a matrix product or attention, although it is a pointwise result: the partitioner
/// does not recompute what backward would have to write out (torch/_functorch/partitioners.py,
/// ban_if_materialized_backward). Seen with backend aot_eager_decomp_partition on LlamaDecoderLayer: norm outputs, q,
/// k, v, gate, up and their product are kept, the activated gate and the casts are not.
LayerProgram BlockWriter::write()
{
    const NormTensors first = norm(ModuleKind::InputNorm, kInput);
    attention(first);
    const bool sandwich = countOf(ModuleKind::PostAttentionNorm) > 1; // gemma2: norms behind attention and MLP too
    NormTensors afterAttention;
    NormTensors afterMlp;
    if (sandwich) {
        afterAttention = norm(ModuleKind::PostAttentionNorm, m_attentionProjected);
        m_attentionProjected = afterAttention.out;
    }
    const bool parallel = m_arch.parallelAttention;
    NormTensors second = first;
    if (!parallel) {
        m_residual = hidden(kResidual);
        m_program.forward(-1, {kInput, m_attentionProjected}, {m_residual});
        second = norm(ModuleKind::PostAttentionNorm, m_residual, sandwich ? 1 : 0);
    } else if (find(ModuleKind::PostAttentionNorm) >= 0 || countOf(ModuleKind::InputNorm) > 1) {
        second = norm(ModuleKind::PostAttentionNorm, kInput); // falcon's ln_mlp, gpt_neox
    }
    const bool ownNorm = second.module != first.module;
    mlp(second);
    if (sandwich) {
        afterMlp = norm(ModuleKind::PostMlpNorm, m_mlpOut);
        m_mlpOut = afterMlp.out;
    }
    // The model's loop ("hidden_states = layer(hidden_states)") holds the input until the block returns.
    if (parallel)
        m_program.forward(-1, {kInput, m_attentionProjected, m_mlpOut}, {kOutput}).kernels(2, {kOutput, kOutput});
    else
        m_program.forward(-1, {m_residual, m_mlpOut}, {kOutput}, {kInput});

    const int gradMlpInput = mlpBackward(second, sandwich ? normThrough(afterMlp, kGradOutput) : kGradOutput);
    int gradResidual = kGradOutput;
    if (ownNorm) {
        gradResidual = hidden(kGradHidden);
        normBackwardInto(second, gradMlpInput, kGradOutput, gradResidual);
    }
    const int gradAttentionOut = parallel ? static_cast<int>(kGradOutput) : gradResidual;
    const int gradAttention =
        attentionBackward(first, sandwich ? normThrough(afterAttention, gradAttentionOut) : gradAttentionOut);
    if (!ownNorm)
        m_program.backward(-1, {gradAttention, gradMlpInput}, {}).kernels(1, {gradAttention}); // summed in place
    normBackwardInto(first, gradAttention, gradResidual, kGradInput);

    if (m_context.variant.checkpointChildren && m_training.checkpointing == Checkpointing::Full) {
        for (const int childInput : {first.out, m_residual, second.out})
            if (childInput >= 0)
                m_program.keepByPolicy(childInput);
    }
    policy();
    return std::move(m_program);
}

int BlockWriter::tensor(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach)
{
    const ProgramContext& context = m_alongSequence ? m_sequence : m_context;
    return m_program.tensor(context.add(spec, width, bytesEach == 0 ? m_c : bytesEach, m_type));
}

int BlockWriter::square(const BufferSpec& spec, std::int64_t bytesEach)
{
    return m_program.tensor(m_context.add(spec, m_arch.heads, bytesEach, m_type, /*timesSequence=*/true));
}

int BlockWriter::find(ModuleKind kind, int skip) const
{
    for (std::size_t i = 0; i < m_modules.size(); ++i)
        if (m_modules[i].kind == kind && skip-- == 0)
            return static_cast<int>(i);
    return -1;
}

int BlockWriter::countOf(ModuleKind kind) const
{
    return static_cast<int>(
        std::count_if(m_modules.begin(), m_modules.end(), [kind](const LeafModule& m) { return m.kind == kind; }));
}

int BlockWriter::ifTrains(ModuleKind kind, int slot) const
{
    const bool trains = std::any_of(m_modules.begin(), m_modules.end(),
                                    [kind](const LeafModule& m) { return m.kind == kind && m.needsInput(); });
    return trains ? slot : -1;
}

NormTensors BlockWriter::norm(ModuleKind kind, int input, int skip)
{
    int module = find(kind, skip);
    if (module < 0 && kind == ModuleKind::PostAttentionNorm && countOf(ModuleKind::InputNorm) > 1)
        module = find(ModuleKind::InputNorm, 1);
    return normForward(m_sequence, m_program, m_type, module, input, m_arch.hidden, 1, -1);
}

NormTensors BlockWriter::normOf(int module, int input, std::int64_t width, std::int64_t rows)
{
    return normForward(m_context, m_program, m_type, module, input, width, rows, -1);
}

int BlockWriter::normThrough(const NormTensors& norm, int gradOut)
{
    const int through = hidden(kGradHidden);
    normBackward(m_sequence, m_program, m_type, norm, m_arch.hidden, gradOut, through);
    return through;
}

/// Gradient of the residual stream below a norm: gradient through the norm plus `gradResidual`.
void BlockWriter::normBackwardInto(const NormTensors& norm, int gradOut, int gradResidual, int result)
{
    const int through = normThrough(norm, gradOut);
    m_program.backward(-1, {through, gradResidual}, {result});
}

int BlockWriter::dropout(int input, int& mask)
{
    if (m_arch.residualDropout <= 0)
        return input;
    mask = m_program.tensor(m_sequence.add(kDropoutMask, m_arch.hidden, 1, m_type));
    const int dropped = hidden(kDropped);
    ProgramStep& step = m_program.forward(-1, {input}, {dropped, mask});
    if (m_training.implementation == Implementation::Megatron)
        step.is(WorkKind::Nothing); // one kernel with the sum that follows: fused_bias_dropout.py
    return dropped;
}

int BlockWriter::dropoutBackward(int gradOut, int mask)
{
    if (mask < 0)
        return gradOut;
    const int grad = hidden(kGradHidden);
    m_program.backward(-1, {gradOut, mask}, {grad});
    return grad;
}

void BlockWriter::adapter(int module)
{
    if (module < 0 || m_modules[static_cast<std::size_t>(module)].loraRank == 0)
        return;
    const int innerActivation = tensor(kLoraHidden, m_modules[static_cast<std::size_t>(module)].loraRank);
    m_program.forward(module, {}, {innerActivation}).is(WorkKind::Adapter);
    m_program.backward(-1, {innerActivation}, {}).is(WorkKind::Adapter).of(module);
}

/// What selective checkpointing keeps.
void BlockWriter::policy()
{
    if (m_training.checkpointing != Checkpointing::Selective)
        return;
    if (m_training.implementation == Implementation::Torchtitan) {
        // torchtitan's per-operation policy (torchtitan/models/.../parallelize: _save_list): every second matrix
        // product (1st, 3rd, ... in forward order: wq, wv, w1, w2) and the attention output with its statistics.
        // Eager checkpointing caches all of them; a compiled block saves only what its backward reads, which w2's
        // output is not (the residual sum follows it).
        for (const int slot :
             {m_queryLinear, m_value, m_attentionOut, m_logSumExp, m_inner.gate, m_training.compile ? -1 : m_mlpOut})
            if (slot >= 0)
                m_program.keepByPolicy(slot);
        return;
    }
    // Selective recomputation of arXiv 2205.05198 sec. 5: all but the attention core (scores, softmax, dropout).
    // Megatron-LM runs fused attention again, too (megatron/core/transformer/attention.py
    // _checkpointed_attention_forward): its statistics are not kept, its output is the next matrix's input.
    const int statistics = m_training.implementation == Implementation::Megatron ? m_logSumExp : -1;
    for (int slot = kFirstOwnSlot; slot < static_cast<int>(m_program.slots()); ++slot)
        if (m_program.usedInBackward(slot) && slot != m_softcap && slot != m_softmax && slot != m_probabilities &&
            slot != m_attentionMask && slot != m_dropped && slot != statistics)
            m_program.keepByPolicy(slot);
}

BufferClassId ProgramContext::add(const BufferSpec& spec, std::int64_t width, std::int64_t bytesEach, int layerType,
                                  bool timesSequence) const
{
    if (width == 0)
        return -1;
    classes.push_back({&spec, ceilDivide(checkedMultiply(width, bytesEach), split), timesSequence, layerType});
    return static_cast<BufferClassId>(classes.size()) - 1;
}

int ProgramContext::addCollective(const LayerCollective& collective) const
{
    const auto known = std::find(collectives.begin(), collectives.end(), collective);
    if (known != collectives.end())
        return static_cast<int>(known - collectives.begin());
    collectives.push_back(collective);
    return static_cast<int>(collectives.size()) - 1;
}

ProgramContext ProgramContext::alongSequence() const
{
    ProgramContext along = *this;
    along.split = variant.local.splitsSequence() ? variant.local.tensor : 1;
    return along;
}

LayerProgram blockProgram(const ProgramContext& context, int layerType, const std::vector<LeafModule>& modules)
{
    return BlockWriter(context, layerType, modules).write();
}

} // namespace shardwright
