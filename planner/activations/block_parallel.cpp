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

} // namespace

int BlockWriter::collective(OpKind kind, std::string_view name, std::string_view formula) const
{
    return m_context.addCollective(
        {kind, LocalGroup::Tensor, name, formula, kSource, checkedMultiply(m_arch.hidden, m_c), m_context.compute});
}

/// What a column-parallel matrix reads of the split residual stream.
int BlockWriter::gatherInput(int normOut)
{
    if (!local().splitsSequence())
        return normOut;
    const int gathered = wholeHidden(kGathered);
    m_program.forwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {normOut}, {gathered});
    return gathered;
}

/// Sums what row-parallel matrices made.
int BlockWriter::reduceOutput(int partial)
{
    if (!local().splitsTensors())
        return partial;
    if (!local().splitsSequence()) {
        m_program.forwardCollective(collective(OpKind::AllReduce, "hidden states", "c T H"), {partial}, {});
        return partial;
    }
    const int reduced = hidden(kReduced);
    m_program.forwardCollective(collective(OpKind::ReduceScatter, "hidden states", "c T H"), {partial}, {reduced});
    return reduced;
}

/// The gradient of a row-parallel matrix's output.
int BlockWriter::gatherGradient(int grad)
{
    if (!local().splitsSequence())
        return grad;
    const int whole = wholeHidden(kGradWhole);
    m_program.backwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {grad}, {whole});
    return whole;
}

int BlockWriter::reduceGradient(int partial, bool beside)
{
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
        m_program.backwardCollective(collective(OpKind::AllGather, "hidden states", "c T H"), {normOut}, {read}, true);
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

} // namespace shardwright
