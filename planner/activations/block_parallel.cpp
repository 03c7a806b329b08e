// What tensor-parallel ranks exchange within a block: Megatron-LM (arXiv 1909.08053 sec. 3: one all-reduce behind each
// row-parallel matrix and, on the way back, behind each column-parallel one) and its sequence parallelism (arXiv
// 2205.05198 sec. 4.2: all-gather and reduce-scatter in their place).

#include "planner/activations/block_writer.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr std::string_view kSource = "arXiv 2205.05198 sec. 4.2; megatron/core/tensor_parallel/mappings.py";

constexpr BufferSpec kGathered{"hidden states gathered over the tensor-parallel ranks", "c T H", kSource,
                               C::Activations};
constexpr BufferSpec kReduced{"hidden states after reduction over the tensor-parallel ranks", "c T H / t", kSource,
                              C::Activations};
constexpr BufferSpec kGradWhole{"gradient gathered over the tensor-parallel ranks", "c T H", kSource, C::Temporaries};
constexpr BufferSpec kGradReduced{"gradient after reduction over the tensor-parallel ranks", "c T H / t", kSource,
                                  C::Temporaries};

// vendor: transformer_engine/pytorch/module/base.py initialize_ub: num_splits of the method "pipeline", which output
// products take; gathers take "ring_exchange", whose first piece is the rank's own.
constexpr std::int64_t kReducedPieces = 4;

constexpr std::string_view kRingSource = "Ring Attention (arXiv 2310.01889); Transformer Engine AttnFuncWithCPAndKVP2P";
constexpr std::string_view kGatherSource = "Llama 3 (arXiv 2407.21783) sec. 3.3.2: all-gather of keys and values";
constexpr std::string_view kUlyssesSource = "DeepSpeed-Ulysses (arXiv 2309.14509) sec. 3; deepspeed/sequence/layer.py";
constexpr BufferSpec kRing{"keys and values from the ring, two pieces at a time", "2 x 2 c T a_kv d", kRingSource,
                           C::Temporaries};
constexpr BufferSpec kGatheredKeys{"keys and values of the whole sequence", "2 c T x ranks a_kv d", kGatherSource,
                                   C::Temporaries};
constexpr BufferSpec kRingGradient{"keys, values and their gradients on the ring", "2 x 4 c T a_kv d", kRingSource,
                                   C::Temporaries};

} // namespace

int BlockWriter::collective(OpKind kind, std::string_view name, std::string_view formula) const
{
    // torchtitan's float8 linear layers cast before they gather, inputs and gradients alike: "float8 all-gather for TP
    // (by default for Float8Linear)" (github.com/pytorch/torchtitan docs/float8.md, torchao float8_tensor_parallel.py).
    // Scaled by row they gather what they are given (parallelize_llama.py enable_float8_tensorwise_tp).
    if (kind == OpKind::AllGather && m_training.precision.fp8 &&
        m_training.precision.fp8Scaling == Float8Scaling::Tensorwise &&
        m_training.implementation == Implementation::Torchtitan)
        return m_context.addCollective({kind, LocalGroup::Tensor, "hidden states in float8", "T H",
                                        "torchao float8/float8_tensor_parallel.py", m_arch.hidden, m_context.compute});
    return collective(kind, name, formula, checkedMultiply(m_arch.hidden, m_c));
}

int BlockWriter::collective(OpKind kind, std::string_view name, std::string_view formula,
                            std::int64_t bytesPerToken) const
{
    return m_context.addCollective(
        {kind, LocalGroup::Tensor, name, formula, kSource, bytesPerToken, m_context.compute});
}

/// What a column-parallel matrix reads of the split residual stream.
int BlockWriter::gatherInput(int normOut, bool byLinear)
{
    if (!local().splitsSequence())
        return normOut;
    const int gathered = wholeHidden(kGathered);
    m_program.forwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {normOut}, {gathered},
                                besideProducts(byLinear));
    return gathered;
}

/// tp_comm_overlap: Transformer Engine passes pieces from rank to rank while the product works on those that are there.
Beside BlockWriter::besideProducts(bool byLinear) const
{
    return byLinear && local().overlapsProducts ? Beside::Readers : Beside::Nothing;
}

/// Sums what row-parallel matrices made.
int BlockWriter::reduceOutput(int partial, bool byLinear)
{
    if (!local().splitsTensors())
        return partial;
    if (!local().splitsSequence()) {
        m_program.forwardCollective(collective(OpKind::AllReduce, "hidden states", "c T H"), {partial}, {});
        return partial;
    }
    const int reduced = hidden(kReduced);
    if (byLinear && local().overlapsProducts) {
        // The product comes in pieces, each of which is reduced beside the next; the last is waited for.
        const std::int64_t all = checkedMultiply(m_arch.hidden, m_c);
        const std::int64_t last = all / kReducedPieces;
        m_program.forwardCollective(
            collective(OpKind::ReduceScatter, "hidden states, all pieces but the last", "3/4 c T H", all - last),
            {partial}, {reduced}, Beside::Writer);
        m_program.forwardCollective(
            collective(OpKind::ReduceScatter, "hidden states, the last piece", "1/4 c T H", last), {reduced}, {});
        return reduced;
    }
    m_program.forwardCollective(collective(OpKind::ReduceScatter, "hidden states", "c T H"), {partial}, {reduced});
    return reduced;
}

/// The gradient of a row-parallel matrix's output.
int BlockWriter::gatherGradient(int grad, bool byLinear)
{
    if (!local().splitsSequence())
        return grad;
    const int whole = wholeHidden(kGradWhole);
    m_program.backwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {grad}, {whole},
                                 besideProducts(byLinear));
    return whole;
}

int BlockWriter::reduceGradient(int partial, bool besideWeights)
{
    const Beside beside = besideWeights ? Beside::Following : Beside::Nothing;
    if (!local().splitsTensors())
        return partial;
    if (!local().splitsSequence()) {
        m_program.backwardCollective(collective(OpKind::AllReduce, "hidden states", "c T H"), {partial}, {}, beside);
        return partial;
    }
    const int reduced = hidden(kGradReduced);
    m_program.backwardCollective(collective(OpKind::ReduceScatter, "hidden states", "c T H"), {partial}, {reduced},
                                 beside);
    return reduced;
}

/// Backward of column-parallel matrices that read one input; returns the gradient of the residual stream's norm output.
int BlockWriter::columnBackward(const std::vector<Branch>& branches, int normOut, int gathered, const BufferSpec& spec)
{
    const int result = wholeHidden(spec);
    int read = normOut < 0 ? -1 : gathered;
    if (!local().regathers) {
        for (const Branch& branch : branches) {
            const bool first = &branch == &branches.front();
            const int made = first ? result : wholeHidden(spec);
            ProgramStep& product = m_program.backward(branch.module, {branch.grad, read}, {made}, {result});
            if (!first)
                product.kernels(2, {result, result, made}); // summed in place
        }
        return reduceGradient(result, false);
    }
    if (normOut >= 0 && local().splitsSequence()) {
        read = wholeHidden(kGradWhole);
        m_program.backwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {normOut}, {read},
                                     Beside::Following);
    }
    for (const Branch& branch : branches) {
        const bool first = &branch == &branches.front();
        const int made = first ? result : wholeHidden(spec);
        ProgramStep& product = m_program.backwardHalf(Half::First, branch.module, {branch.grad}, {made}, {result});
        if (!first)
            product.kernels(2, {result, result, made});
    }
    const int reduced = reduceGradient(result, true);
    // The reduction reads the partial sum until the weights' gradients are done.
    const int reading = reduced == result ? -1 : result;
    for (const Branch& branch : branches)
        m_program.backwardHalf(Half::Second, branch.module, {branch.grad, read}, {}, {reading});
    return reduced;
}

/// Elements a token that attention reads besides the query.
std::int64_t BlockWriter::keysAndValues() const
{
    return m_rules.repeatsHeads ? checkedAdd(queryWidth(), outWidth()) : checkedAdd(keyWidth(), valueWidth());
}

/// Ulysses: a rank's tokens of all heads become all tokens of its heads, or back; as many elements either way.
int BlockWriter::exchangeHeads(bool forward, int slot, const BufferSpec& spec, std::int64_t width)
{
    const int exchanged = tensor(spec, width);
    const int id = m_context.addCollective({OpKind::AllToAll, LocalGroup::Context, "heads of whole sequences",
                                            "c T a d", kUlyssesSource, checkedMultiply(width, m_c), m_context.compute});
    if (forward)
        m_program.forwardCollective(id, {slot}, {exchanged});
    else
        m_program.backwardCollective(id, {slot}, {exchanged});
    return exchanged;
}

/// Context parallelism: every rank's queries meet all keys and values. The ring passes them on piece by piece beside
/// attention; an all-gather brings them first.
void BlockWriter::exchangeKeysAndValues()
{
    const std::int64_t ranks = local().context;
    if (ranks == 1 || ulysses())
        return;
    const std::int64_t bytes = checkedMultiply(keysAndValues(), m_c);
    if (local().exchange == ContextExchange::AllGather) {
        m_exchanged = tensor(kGatheredKeys, checkedMultiply(keysAndValues(), ranks));
        m_program.forwardCollective(
            m_context.addCollective({OpKind::AllGather, LocalGroup::Context, "keys and values", "2 c T a_kv d x ranks",
                                     kGatherSource, checkedMultiply(bytes, ranks), m_context.compute}),
            {m_keyRead, m_valueRead}, {m_exchanged});
        return;
    }
    m_exchanged = tensor(kRing, checkedMultiply(keysAndValues(), 2));
    m_program.forwardCollective(
        m_context.addCollective({OpKind::Send, LocalGroup::Context, "keys and values", "2 c T a_kv d", kRingSource,
                                 bytes, m_context.compute, static_cast<std::int32_t>(ranks - 1)}),
        {m_keyRead, m_valueRead}, {m_exchanged}, Beside::Following);
}

/// On the way back the gradients of keys and values travel too, home to the rank that made them.
void BlockWriter::exchangeKeysAndValuesBackward()
{
    const std::int64_t ranks = local().context;
    if (ranks == 1 || ulysses())
        return;
    const std::int64_t bytes = checkedMultiply(keysAndValues(), m_c);
    if (local().exchange == ContextExchange::AllGather) {
        m_exchanged = tensor(kGatheredKeys, checkedMultiply(keysAndValues(), ranks));
        m_program.backwardCollective(
            m_context.addCollective({OpKind::AllGather, LocalGroup::Context, "keys and values", "2 c T a_kv d x ranks",
                                     kGatherSource, checkedMultiply(bytes, ranks), m_context.compute}),
            {m_keyRead, m_valueRead}, {m_exchanged});
        return;
    }
    m_exchanged = tensor(kRingGradient, checkedMultiply(keysAndValues(), 4));
    m_program.backwardCollective(
        m_context.addCollective({OpKind::Send, LocalGroup::Context, "keys, values and their gradients", "4 c T a_kv d",
                                 kRingSource, checkedMultiply(bytes, 2), m_context.compute,
                                 static_cast<std::int32_t>(ranks)}),
        {m_keyRead, m_valueRead}, {m_exchanged}, Beside::Following);
}

void BlockWriter::finishExchange(int gradKey)
{
    if (m_exchanged < 0)
        return;
    m_program.backward(-1, {m_exchanged}, {}).is(WorkKind::Nothing);
    if (local().exchange == ContextExchange::AllGather)
        m_program.backwardCollective(
            m_context.addCollective({OpKind::ReduceScatter, LocalGroup::Context, "gradients of keys and values",
                                     "2 c T a_kv d x ranks", kGatherSource,
                                     checkedMultiply(checkedMultiply(keysAndValues(), m_c), local().context),
                                     m_context.compute}),
            {gradKey}, {});
}

} // namespace shardwright
