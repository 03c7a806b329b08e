#pragma once

// What layers need of a device. A GPU's implements the same operations as the host's. Elementwise and
// row-wise operations are functors (executor/layers/functors/) that either loops over or launches.
//
// Views are of fp32 or bf16, all of one call alike but where it says otherwise; sums are fp32. Gradients of weights may
// be of another of the two dtypes, and are overwritten.

#include <cstdint>
#include <memory>

#include "executor/layers/dropout.hpp"
#include "executor/layers/rotary.hpp"
#include "executor/tensor_view.hpp"

namespace shardwright {

enum class Transpose : std::uint8_t { No, Yes };

/// (rows, width), normalised along the width.
struct NormShape {
    std::int64_t rows = 0;
    std::int64_t width = 0;
    bool mean = false; // LayerNorm; otherwise RMSNorm
    float epsilon = 0;
};

/// (tokens, heads, headDim); token t stands at position t % length.
struct RotateShape {
    std::int64_t tokens = 0;
    std::int64_t length = 0;
    std::int64_t heads = 0;
    std::int64_t headDim = 0;
    const RotaryFrequencies* frequencies = nullptr;
};

/// Sequences of `length` tokens, causal; heads / keyHeads query heads share a key head. Query t sees the keys (t -
/// window, t]. Probabilities are dropped by (query, head) as rows, keys as columns.
struct AttentionShape {
    std::int64_t sequences = 0;
    std::int64_t length = 0;
    std::int64_t heads = 0;
    std::int64_t keyHeads = 0;
    std::int64_t headDim = 0;
    std::int64_t window = 0; // 0: all keys up to t
    Dropout dropout = {};
};

/// Head h of token t begins at element `offset` + t `stride` + h headDim.
struct HeadsView {
    TensorView tensor;
    std::int64_t offset = 0;
    std::int64_t stride = 0;
};

class Device {
public:
    virtual ~Device() = default;

    /// c (m x n) = a (m x k) b (k x n), row-major; each operand may be stored transposed. c's dtype may differ from
    /// that of a and b. `add`: added to what c holds.
    virtual void multiply(TensorView a, Transpose transposeA, TensorView b, Transpose transposeB, TensorView c,
                          std::int64_t m, std::int64_t n, std::int64_t k, bool add = false) = 0;

    /// Row i of out (rows x width) = row tokens[i] of the table.
    virtual void embed(TensorView tokens, TensorView table, TensorView out, std::int64_t rows, std::int64_t width) = 0;
    /// Of the table (vocab x width): the rows of the gradient, summed by token.
    virtual void embedGradient(TensorView gradient, TensorView tokens, TensorView gradTable, std::int64_t rows,
                               std::int64_t width, std::int64_t vocab) = 0;
    /// Row i of out = row i of x + row i % length of the table.
    virtual void addPositions(TensorView x, TensorView table, TensorView out, std::int64_t rows, std::int64_t width,
                              std::int64_t length) = 0;
    /// Of the table (positions x width): zeros from `length` on.
    virtual void addPositionsGradient(TensorView gradient, TensorView gradTable, std::int64_t rows, std::int64_t width,
                                      std::int64_t length, std::int64_t positions) = 0;

    /// bias.data null: none. statistics: means (of LayerNorm), reciprocal deviations; fp32.
    virtual void norm(const NormShape& shape, TensorView x, TensorView weight, TensorView bias, TensorView y,
                      TensorView statistics) = 0;
    virtual void normGradient(const NormShape& shape, TensorView gradient, TensorView x, TensorView statistics,
                              TensorView weight, TensorView gradX) = 0;
    virtual void normWeightsGradient(const NormShape& shape, TensorView gradient, TensorView x, TensorView statistics,
                                     TensorView gradWeight, TensorView gradBias) = 0;

    /// Every row of out = row.
    virtual void fillRows(TensorView row, TensorView out, std::int64_t rows, std::int64_t width) = 0;
    /// out (width) = sum of the rows of x. out's dtype may differ.
    virtual void sumRows(TensorView x, TensorView out, std::int64_t rows, std::int64_t width) = 0;

    /// Rows of sequences of `length` tokens; y may be x. Its own gradient.
    virtual void dropout(const Dropout& dropout, TensorView x, TensorView y, std::int64_t rows, std::int64_t width,
                         std::int64_t length) = 0;
    /// In place. `inverse`: the gradient.
    virtual void rotate(const RotateShape& shape, TensorView x, bool inverse) = 0;
    /// Softmax of q k^T / sqrt(headDim) times v; logSumExp (tokens, heads) is fp32.
    virtual void attention(const AttentionShape& shape, const HeadsView& q, const HeadsView& k, const HeadsView& v,
                           const HeadsView& context, TensorView logSumExp) = 0;
    struct AttentionGradient {
        HeadsView gradient, q, k, v, context;
        TensorView logSumExp;
        HeadsView gradQ, gradK, gradV;
    };
    virtual void attentionGradient(const AttentionShape& shape, const AttentionGradient& operands) = 0;

    virtual void add(TensorView x, TensorView y, TensorView sum) = 0;
    virtual void swiGlu(TensorView gate, TensorView up, TensorView product) = 0;
    virtual void swiGluGradient(TensorView gradient, TensorView gate, TensorView up, TensorView gradGate,
                                TensorView gradUp) = 0;
    virtual void gelu(TensorView x, TensorView y) = 0;
    virtual void geluGradient(TensorView gradient, TensorView x, TensorView gradX) = 0;

    /// Of logits (rows x vocab): returns the sum of the losses of the labels.
    virtual double crossEntropy(TensorView logits, TensorView labels, TensorView logSumExp, std::int64_t rows,
                                std::int64_t vocab) = 0;
    /// In place: factor (softmax - 1 at the label).
    virtual void crossEntropyGradient(TensorView logits, TensorView labels, TensorView logSumExp, std::int64_t rows,
                                      std::int64_t vocab, float factor) = 0;

    /// Worker threads that compute; 1 = the calling one alone.
    virtual int threads() const = 0;
};

/// The host: blocked matrix products, everything else in loops, over `threads` threads. Besides its operands it holds a
/// few blocks a thread (below 3 MiB), in attention's backward three heads' rows of a sequence in fp32, the table of
/// rotary angles, and the order of a batch's tokens.
std::unique_ptr<Device> makeHostDevice(int threads);

} // namespace shardwright
