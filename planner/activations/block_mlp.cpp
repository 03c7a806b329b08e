// The dense MLP of a block and what runs inside an expert.

#include "planner/activations/block_writer.hpp"

namespace shardwright {

namespace {

using C = Category;

// Sources: "HF" the modelling code of transformers, "torch" ATen's derivatives.yaml.
constexpr BufferSpec kGate{"gate projection", "c T I", "torch silu", C::Activations};
constexpr BufferSpec kUp{"up projection", "c T I", "torch mul", C::Activations};
constexpr BufferSpec kGateUp{"gate and up projections as one product made them", "2 c T I",
                             "HF Phi3MLP, MixtralExperts", C::Activations};
constexpr BufferSpec kGateActivated{"activated gate", "c T I", "torch mul", C::Activations};
constexpr BufferSpec kMlpProduct{"input of the down projection", "c T I", "torch linear", C::Activations};
constexpr BufferSpec kFullyConnected{"first MLP matrix's output", "c T I", "torch gelu", C::Activations};
constexpr BufferSpec kGeluPart{"intermediate of the composed GELU", "c T I", "HF NewGELUActivation", C::Activations};
constexpr BufferSpec kGeluTemporary{"temporary of the composed GELU", "c T I", "HF NewGELUActivation", C::Temporaries};
constexpr BufferSpec kMlpOut{"down projection", "c T H", "torch linear", C::Activations};
constexpr BufferSpec kGradInner{"gradient inside the MLP", "c T I", "torch autograd", C::Temporaries};
constexpr BufferSpec kGradGateUp{"gradient of gate and up together", "2 c T I", "torch split_backward", C::Temporaries};
constexpr BufferSpec kGradHidden{"gradient of hidden states", "c T H", "torch autograd", C::Temporaries};

} // namespace

void BlockWriter::mlp(const NormTensors& before)
{
    const bool experts = find(ModuleKind::ExpertIn) >= 0;
    m_mlpInput = experts && routesOwnTokens() ? before.out : gatherInput(before.out, !experts);
    if (experts && routesOwnTokens()) {
        // Megatron-LM with expert_tensor_parallel_size 1: no rank gathers the sequence for its experts.
        m_alongSequence = true;
        this->experts(m_mlpInput);
        m_alongSequence = false;
        if (find(ModuleKind::SharedIn) >= 0)
            sharedExpert(m_mlpInput);
    } else if (experts) {
        this->experts(m_mlpInput);
        if (find(ModuleKind::SharedIn) >= 0)
            sharedExpert(m_mlpInput);
        m_mlpOut = reduceOutput(m_mlpOut, false);
    } else {
        m_inner = inner(m_mlpInput, ModuleKind::MlpIn, ModuleKind::MlpOut, m_arch.ffn, m_rules.fusedGateUp);
        m_mlpOut = wholeHidden(kMlpOut);
        m_program.forward(find(ModuleKind::MlpOut), {m_inner.product}, {m_mlpOut}, {before.out});
        adapter(find(ModuleKind::MlpOut));
        m_mlpOut = reduceOutput(m_mlpOut);
    }
    m_mlpOut = dropout(m_mlpOut, m_mlpResidualMask);
}

/// Returns the gradient of the MLP's input.
int BlockWriter::mlpBackward(const NormTensors& before, int gradOut)
{
    const int grad = dropoutBackward(gradOut, m_mlpResidualMask);
    if (find(ModuleKind::ExpertIn) >= 0 && routesOwnTokens()) {
        m_gradShared = find(ModuleKind::SharedIn) >= 0 ? sharedExpertBackward(m_mlpInput, grad) : -1;
        m_alongSequence = true;
        const int gradInput = expertsBackward(grad);
        m_alongSequence = false;
        return gradInput;
    }
    if (find(ModuleKind::ExpertIn) >= 0) {
        const int whole = gatherGradient(grad, false);
        m_gradShared = find(ModuleKind::SharedIn) >= 0 ? sharedExpertBackward(m_mlpInput, whole) : -1;
        return reduceGradient(expertsBackward(whole), false);
    }
    return innerBackward(ifTrains(ModuleKind::MlpIn, before.out), gatherGradient(grad), m_inner, kGradHidden,
                         m_arch.hidden, true, m_mlpInput);
}

BlockWriter::Inner BlockWriter::inner(int input, ModuleKind in, ModuleKind out, std::int64_t width, bool fused)
{
    Inner made{in, out, width, fused};
    const bool compiled = m_training.compile;
    const int first = find(in);
    if (m_arch.mlp == MlpKind::Gated) {
        const int second = countOf(in) > 1 ? find(in, 1) : first;
        made.gate = tensor(fused ? kGateUp : kGate, checkedMultiply(width, fused ? 2 : 1));
        made.up = fused ? made.gate : tensor(kUp, width);
        made.activated = compiled ? -1 : tensor(kGateActivated, width);
        made.product = tensor(kMlpProduct, width);
        m_program.forward(first, {input}, {made.gate});
        adapter(first);
        if (fused && second != first)
            adapter(second);
        m_program.forward(-1, {made.gate}, {made.activated});
        if (!fused) {
            m_program.forward(second, {input}, {made.up});
            adapter(second);
        }
        // "input" is an argument of the MLP's forward: named until it returns.
        m_program.forward(-1, {compiled ? made.gate : made.activated, fused && compiled ? -1 : made.up}, {made.product},
                          {input});
        return made;
    }
    made.gate = tensor(kFullyConnected, width);
    made.product = tensor(kMlpProduct, width);
    m_program.forward(first, {input}, {made.gate});
    adapter(first);
    if (m_rules.activation == Activation::ComposedGelu) {
        // 0.5 x (1 + tanh(k (x + 0.044715 x^3))), as Python evaluates it: 0.5 x stands first
        made.half = tensor(kGeluPart, width);
        made.tanh = tensor(kGeluPart, width);
        made.onePlus = tensor(kGeluPart, width);
        const int cube = tensor(kGeluTemporary, width);
        const int scaled = tensor(kGeluTemporary, width);
        const int sum = tensor(kGeluTemporary, width);
        const int argument = tensor(kGeluTemporary, width);
        m_program.forward(-1, {made.gate}, {made.half});
        m_program.forward(-1, {made.gate}, {cube}, {made.half});
        m_program.forward(-1, {cube}, {scaled}, {made.half});
        m_program.forward(-1, {made.gate, scaled}, {sum}, {made.half});
        m_program.forward(-1, {sum}, {argument}, {made.gate, made.half});
        m_program.forward(-1, {argument}, {made.tanh}, {made.gate, made.half});
        m_program.forward(-1, {made.tanh}, {made.onePlus}, {made.gate, made.half});
        m_program.forward(-1, {made.half, made.onePlus}, {made.product}, {made.gate});
    } else {
        m_program.forward(-1, {made.gate}, {made.product});
    }
    return made;
}

int BlockWriter::innerBackward(int input, int gradOut, const Inner& made, const BufferSpec& resultSpec,
                               std::int64_t resultWidth, bool column, int gathered)
{
    const auto inside = [&] { return tensor(kGradInner, made.width); };
    const bool gated = m_arch.mlp == MlpKind::Gated;
    const bool compiled = m_training.compile;
    const int gradProduct = inside();
    m_program.backward(find(made.out), {gradOut, ifTrains(made.out, made.product)}, {gradProduct});
    const bool splits = column && local().splitsTensors();
    const int result = splits ? -1 : tensor(resultSpec, resultWidth);
    if (!gated) {
        int gradGate = -1;
        if (m_rules.activation == Activation::ComposedGelu) {
            gradGate = composedGeluBackward(made, gradProduct);
        } else {
            gradGate = inside();
            const int read = m_rules.activation == Activation::Relu ? made.product : made.gate;
            m_program.backward(-1, {gradProduct, read}, {gradGate});
        }
        if (splits)
            return columnBackward({{find(made.in), gradGate}}, input, gathered, resultSpec);
        m_program.backward(find(made.in), {gradGate, input}, {result});
        return result;
    }
    const int gradUp = inside();
    const int gradGate = inside();
    if (compiled) {
        m_program.backward(-1, {gradProduct, made.gate, made.up}, {gradUp, gradGate});
    } else {
        const int gradActivated = inside();
        m_program.backward(-1, {gradProduct, made.activated, made.up}, {gradUp, gradActivated})
            .kernels(2, {gradProduct});
        m_program.backward(-1, {gradActivated, made.gate}, {gradGate});
    }
    const int gateModule = find(made.in);
    if (made.fused) {
        const int both = tensor(kGradGateUp, checkedMultiply(made.width, 2));
        m_program.backward(-1, {gradGate, gradUp}, {both});
        if (splits)
            return columnBackward({{gateModule, both}}, input, gathered, resultSpec);
        m_program.backward(gateModule, {both, input}, {result});
        return result;
    }
    const int upModule = countOf(made.in) > 1 ? find(made.in, 1) : gateModule;
    if (splits)
        return columnBackward({{upModule, gradUp}, {gateModule, gradGate}}, input, gathered, resultSpec);
    m_program.backward(upModule, {gradUp, input}, {result});
    const int addend = tensor(resultSpec, resultWidth);
    m_program.backward(gateModule, {gradGate, input}, {addend}, {result})
        .kernels(2, {result, result, addend}); // summed in place
    return result;
}

int BlockWriter::composedGeluBackward(const Inner& made, int gradProduct)
{
    const auto inside = [&] { return tensor(kGradInner, made.width); };
    const int gradHalf = inside();
    const int gradOnePlus = inside();
    m_program.backward(-1, {gradProduct, made.half, made.onePlus}, {gradHalf, gradOnePlus}).kernels(2, {gradProduct});
    const int gradArgument = inside();
    m_program.backward(-1, {gradOnePlus, made.tanh}, {gradArgument}, {gradHalf});
    const int gradSum = inside();
    m_program.backward(-1, {gradArgument}, {gradSum}, {gradHalf});
    const int gradCube = inside();
    m_program.backward(-1, {gradSum}, {gradCube}, {gradHalf});
    const int square = inside();
    const int tripled = inside();
    const int chained = inside();
    m_program.backward(-1, {gradCube, made.gate}, {square, tripled, chained}, {gradSum, gradHalf})
        .kernels(3, {square, tripled});
    const int halved = inside();
    m_program
        .backward(-1, {gradSum, chained, gradHalf}, {halved}) // 0.5 of gradHalf, then summed in place
        .kernels(3, {gradSum, gradSum, gradSum, halved});
    return gradSum;
}

} // namespace shardwright
