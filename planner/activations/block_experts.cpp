// A mixture of experts, as transformers' grouped_mm_experts_forward runs it (integrations/moe.py): the tokens of all
// experts in one grouped matrix product. k experts a token.

#include <algorithm>
#include <cmath>

#include "planner/activations/block_writer.hpp"

namespace shardwright {

namespace {

using C = Category;

constexpr BufferSpec kRouterInput{"fp32 copy of the router's input", "4 T H", "HF DeepseekV3TopkRouter.forward",
                                  C::Activations};
constexpr BufferSpec kRouterLogits{"router logits", "4 T E", "HF sparse MoE block", C::Temporaries};
constexpr BufferSpec kRouterWeights{"router probabilities", "4 T E", "torch softmax or sigmoid keeps its result",
                                    C::Activations};
constexpr BufferSpec kExpertInput{"tokens gathered for the experts", "c k T H", "HF grouped_mm_experts_forward",
                                  C::Activations};
constexpr BufferSpec kDispatched{"tokens that other ranks sent to the experts here", "c k T H x imbalance",
                                 "megatron/core/transformer/moe/token_dispatcher.py MoEAlltoAllTokenDispatcher",
                                 C::Activations};
constexpr BufferSpec kReturned{"experts' outputs, back on the rank of their tokens", "c k T H",
                               "megatron/core/transformer/moe/token_dispatcher.py MoEAlltoAllTokenDispatcher",
                               C::Activations};
constexpr BufferSpec kGradExchanged{"gradient on its way between expert-parallel ranks", "c k T H x imbalance",
                                    "megatron/core/transformer/moe/token_dispatcher.py", C::Temporaries};
constexpr BufferSpec kExpertOutput{"experts' outputs before weighting", "c k T H", "HF grouped_mm_experts_forward",
                                   C::Activations};
constexpr BufferSpec kExpertWeighted{"weighted outputs of the experts", "c k T H (4 k T H with fp32 weights)",
                                     "HF grouped_mm_experts_forward", C::Temporaries};
constexpr BufferSpec kExpertSum{"sum over a token's experts", "4 T H", "HF grouped_mm_experts_forward", C::Temporaries};
constexpr BufferSpec kMlpOut{"output of the experts", "c T H", "HF sparse MoE block", C::Activations};
constexpr BufferSpec kGradExpert{"gradient of the experts' outputs", "c k T H (4 k T H with fp32 weights)",
                                 "torch autograd: sum, index and mul backward", C::Temporaries};
constexpr BufferSpec kGradExpertInput{"gradient of the gathered tokens", "c k T H", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", "torch index backward", C::Temporaries};
constexpr BufferSpec kGradRouterInput{"fp32 gradient of the router's input", "4 T H", "torch autograd", C::Temporaries};

} // namespace

std::int64_t BlockWriter::ofBusiest(std::int64_t width) const
{
    if (local().expert == 1)
        return width;
    return static_cast<std::int64_t>(std::ceil(static_cast<double>(width) * local().expertImbalance));
}

/// An all-to-all over the expert-parallel ranks: every token goes to the rank that holds its expert, or back.
int BlockWriter::exchangeExperts(bool forward, int tensorSlot, const BufferSpec& spec, std::int64_t width)
{
    if (local().expert == 1)
        return tensorSlot;
    const int exchanged = tensor(spec, width);
    const std::int64_t routed = std::max<std::int64_t>(1, m_arch.expertsPerToken);
    const int id = m_context.addCollective(
        {OpKind::AllToAll, LocalGroup::Expert, "tokens for experts", "c k T H",
         "megatron/core/transformer/moe/token_dispatcher.py",
         ceilDivide(checkedMultiply(checkedMultiply(routed, m_arch.hidden), m_c), local().expertSplit()),
         m_context.compute});
    if (forward)
        m_program.forwardCollective(id, {tensorSlot}, {exchanged});
    else
        m_program.backwardCollective(id, {tensorSlot}, {exchanged});
    return exchanged;
}

void BlockWriter::experts(int input)
{
    const std::int64_t routed = std::max<std::int64_t>(1, m_arch.expertsPerToken);
    const std::int64_t routedHidden = checkedMultiply(routed, m_arch.hidden);
    const std::int64_t each = m_rules.fp32RoutingWeights ? 4 : m_c;
    int routerInput = input;
    if (m_rules.routesInFp32 && m_c != 4) {
        routerInput = m_routerInput = tensor(kRouterInput, m_arch.hidden, 4);
        m_program.forward(-1, {input}, {routerInput});
    }
    const int logits = tensor(kRouterLogits, m_arch.experts, 4);
    m_routerLogits = tensor(kRouterWeights, m_arch.experts, 4);
    m_program.forward(find(ModuleKind::Router), {routerInput}, {logits});
    m_program.forward(-1, {logits}, {m_routerLogits}).kernels(3, {m_routerLogits}); // and top-k, renormalisation
    m_expertInput = tensor(kExpertInput, routedHidden);
    m_program.forward(-1, {input}, {m_expertInput}).kernels(4, {m_expertInput}); // sort, counts; k reads a token
    const bool fused = m_training.implementation == Implementation::HuggingFace;
    m_dispatched = exchangeExperts(true, m_expertInput, kDispatched, ofBusiest(routedHidden));
    m_inner = inner(m_dispatched, ModuleKind::ExpertIn, ModuleKind::ExpertOut,
                    ofBusiest(checkedMultiply(routed, m_arch.expertFfn)), fused);
    m_expertOutput = tensor(kExpertOutput, ofBusiest(routedHidden));
    const int weighted = tensor(kExpertWeighted, routedHidden, each);
    const int ordered = tensor(kExpertWeighted, routedHidden, each);
    m_program.forward(find(ModuleKind::ExpertOut), {m_inner.product}, {m_expertOutput}, {m_expertInput});
    m_expertOutput = exchangeExperts(true, m_expertOutput, kReturned, routedHidden);
    m_program.forward(-1, {m_expertOutput, m_routerLogits}, {weighted}, {m_expertInput});
    m_program.forward(-1, {weighted}, {ordered}, {m_expertOutput, m_expertInput});
    m_mlpOut = wholeHidden(kMlpOut);
    const int sum = each == m_c ? m_mlpOut : tensor(kExpertSum, m_arch.hidden, each);
    m_program.forward(-1, {ordered}, {sum, m_mlpOut}, {m_expertOutput, m_expertInput}).kernels(sum == m_mlpOut ? 1 : 2);
}

/// Its output joins that of the routed experts. Where they take the sequence as it is split, it gathers and reduces by
/// itself (megatron/core/transformer/moe/shared_experts.py).
void BlockWriter::sharedExpert(int input)
{
    const int routedOut = m_mlpOut;
    m_sharedInput = routesOwnTokens() ? gatherInput(input, false) : input;
    m_sharedInner = inner(m_sharedInput, ModuleKind::SharedIn, ModuleKind::SharedOut, m_arch.sharedExpertFfn, false);
    int shared = wholeHidden(kMlpOut);
    m_mlpOut = routesOwnTokens() ? hidden(kMlpOut) : wholeHidden(kMlpOut);
    m_program.forward(find(ModuleKind::SharedOut), {m_sharedInner.product}, {shared}, {routedOut});
    if (m_rules.gatesSharedExpert)
        m_sharedOut = shared;
    if (routesOwnTokens())
        shared = reduceOutput(shared, false);
    m_program.forward(-1, {routedOut, shared}, {m_mlpOut});
}

/// Returns the gradient of the experts' input.
int BlockWriter::sharedExpertBackward(int input, int gradOut)
{
    int gradShared = gradOut;
    if (routesOwnTokens())
        gradShared = gatherGradient(gradOut, false);
    if (m_sharedOut >= 0) {
        const int ungated = gradShared;
        gradShared = wholeHidden(kGradHidden);
        m_program.backward(-1, {ungated, m_sharedOut}, {wholeHidden(kGradHidden), gradShared});
    }
    if (!routesOwnTokens())
        return innerBackward(ifTrains(ModuleKind::SharedIn, input), gradShared, m_sharedInner, kGradHidden,
                             m_arch.hidden);
    return innerBackward(ifTrains(ModuleKind::SharedIn, input), gradShared, m_sharedInner, kGradHidden, m_arch.hidden,
                         true, m_sharedInput);
}

int BlockWriter::expertsBackward(int gradOut)
{
    const std::int64_t routed = std::max<std::int64_t>(1, m_arch.expertsPerToken);
    const std::int64_t routedHidden = checkedMultiply(routed, m_arch.hidden);
    const std::int64_t each = m_rules.fp32RoutingWeights ? 4 : m_c;
    const int input = m_mlpInput;
    const int gradInput = m_gradShared;
    const auto gradExpert = [&](std::int64_t bytesEach) { return tensor(kGradExpert, routedHidden, bytesEach); };
    const int expanded = gradExpert(each);
    m_program.backward(-1, {gradOut}, {expanded});
    const int zeros = gradExpert(each);
    const int ordered = gradExpert(each);
    m_program.backward(-1, {expanded}, {zeros, ordered}, {gradOut}).kernels(2);
    const int gradWeights = gradExpert(each);
    const int gradWeighted = gradExpert(each);
    m_program.backward(-1, {ordered, m_expertOutput, m_routerLogits}, {gradWeighted, gradWeights})
        .kernels(3, {ordered, gradWeights});
    int gradOutput = gradWeighted;
    if (each != m_c) {
        gradOutput = gradExpert(m_c);
        m_program.backward(-1, {gradWeighted}, {gradOutput}, {ordered, gradWeights});
    }
    gradOutput = exchangeExperts(false, gradOutput, kGradExchanged, ofBusiest(routedHidden));
    const int gradDispatched = innerBackward(ifTrains(ModuleKind::ExpertIn, m_dispatched), gradOutput, m_inner,
                                             kGradExpertInput, ofBusiest(routedHidden));
    const int gradExpertInput = exchangeExperts(false, gradDispatched, kGradExchanged, routedHidden);
    const int emptied = wholeHidden(kGradHidden);
    const int gathered = wholeHidden(kGradHidden);
    m_program.backward(-1, {gradExpertInput}, {emptied, gathered}, {gradInput}).kernels(2, {gathered});
    if (m_routerInput >= 0) {
        const int gradRouter = tensor(kGradRouterInput, m_arch.hidden, 4);
        m_program.backward(find(ModuleKind::Router), {m_routerInput}, {gradRouter}, {gathered, gradInput});
        m_program.backward(-1, {gradRouter}, {}, {gradInput}).kernels(2, {gathered, gathered, gathered});
    } else {
        const int addend = wholeHidden(kGradHidden);
        m_program.backward(find(ModuleKind::Router), {input}, {addend}, {gradInput, gathered})
            .kernels(2, {gathered, gathered, addend});
    }
    return gathered;
}

} // namespace shardwright
