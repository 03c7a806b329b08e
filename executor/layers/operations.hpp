#pragma once

// The operations of a device that are functors, whatever launches them. Launch:
//
//   each(count, functor)          functor(i) for every i, independent of each other, a few instructions each
//   rows(count, work, functor)    likewise, `work` elements each
//   double sum(count, functor)    the sum of functor(i), in an order that is always the same
//   Groups groupsOf(tokens, rows, vocab)     rows by their token: begin (vocab + 1), order (rows)
//   const float* rotation(length, frequencies)       cosines, then sines, (length, d / 2) each
//
// Pointers that it gives are good until its next call of the same kind.

#include "executor/layers/device.hpp"
#include "executor/layers/functors/dropout.hpp"
#include "executor/layers/functors/elementwise.hpp"
#include "executor/layers/functors/norms.hpp"
#include "executor/layers/functors/rows.hpp"

namespace shardwright {

struct TokenGroups {
    const std::int64_t* begin;
    const std::int64_t* order;
};

template <typename Launch> class Operations : public Device {
public:
    template <typename... Arguments>
    explicit Operations(Arguments&&... arguments) : m_launch(std::forward<Arguments>(arguments)...)
    {
    }

    void embed(TensorView tokens, TensorView table, TensorView out, std::int64_t rows, std::int64_t width) override
    {
        withStorage(out.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(rows, width,
                          EmbedFunctor<T>{tokens.as<const std::int64_t>(), table.as<const T>(), out.as<T>(), width});
        });
    }

    void embedGradient(TensorView gradient, TensorView tokens, TensorView gradTable, std::int64_t rows,
                       std::int64_t width, std::int64_t vocab) override
    {
        const TokenGroups groups = m_launch.groupsOf(tokens.as<const std::int64_t>(), rows, vocab);
        const std::int64_t blocks = ceilDivide(width, kColumnBlock);
        withBoth(gradient.dtype, gradTable.dtype, [&](auto value, auto weight) {
            using T = decltype(value);
            using W = decltype(weight);
            m_launch.rows(vocab * blocks, kColumnBlock,
                          SumGroupsFunctor<T, W>{gradient.as<const T>(), groups.begin, groups.order, gradTable.as<W>(),
                                                 width, blocks});
        });
    }

    void addPositions(TensorView x, TensorView table, TensorView out, std::int64_t rows, std::int64_t width,
                      std::int64_t length) override
    {
        withStorage(out.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(rows, width,
                          AddRowsFunctor<T>{x.as<const T>(), table.as<const T>(), out.as<T>(), width, length});
        });
    }

    void addPositionsGradient(TensorView gradient, TensorView gradTable, std::int64_t rows, std::int64_t width,
                              std::int64_t length, std::int64_t positions) override
    {
        sumPeriodic(gradient, gradTable, rows, width, length, positions);
    }

    void norm(const NormShape& shape, TensorView x, TensorView weight, TensorView bias, TensorView y,
              TensorView statistics) override
    {
        withNorm(shape, y.dtype, [&](auto value, auto mean) {
            using T = decltype(value);
            m_launch.rows(shape.rows, shape.width,
                          NormFunctor<T, decltype(mean)::value>{x.as<const T>(), weight.as<const T>(),
                                                                bias.as<const T>(), y.as<T>(), statistics.as<float>(),
                                                                shape.rows, shape.width, shape.epsilon});
        });
    }

    void normGradient(const NormShape& shape, TensorView gradient, TensorView x, TensorView statistics,
                      TensorView weight, TensorView gradX) override
    {
        withNorm(shape, gradX.dtype, [&](auto value, auto mean) {
            using T = decltype(value);
            m_launch.rows(shape.rows, shape.width,
                          NormGradientFunctor<T, decltype(mean)::value>{
                              gradient.as<const T>(), x.as<const T>(), statistics.as<const float>(),
                              weight.as<const T>(), gradX.as<T>(), shape.rows, shape.width});
        });
    }

    void normWeightsGradient(const NormShape& shape, TensorView gradient, TensorView x, TensorView statistics,
                             TensorView gradWeight, TensorView gradBias) override
    {
        withNorm(shape, x.dtype, [&](auto value, auto mean) {
            withStorage(gradWeight.dtype, [&](auto weight) {
                using T = decltype(value);
                using W = decltype(weight);
                m_launch.rows(ceilDivide(shape.width, kColumnBlock), shape.rows * kColumnBlock,
                              NormWeightsGradientFunctor<T, W, decltype(mean)::value>{
                                  gradient.as<const T>(), x.as<const T>(), statistics.as<const float>(),
                                  gradWeight.as<W>(), gradBias.as<W>(), shape.rows, shape.width});
            });
        });
    }

    void fillRows(TensorView row, TensorView out, std::int64_t rows, std::int64_t width) override
    {
        withStorage(out.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(rows, width, FillRowsFunctor<T>{row.as<const T>(), out.as<T>(), width});
        });
    }

    void sumRows(TensorView x, TensorView out, std::int64_t rows, std::int64_t width) override
    {
        sumPeriodic(x, out, rows, width, 1, 1);
    }

    void dropout(const Dropout& dropout, TensorView x, TensorView y, std::int64_t rows, std::int64_t width,
                 std::int64_t length) override
    {
        withStorage(y.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(rows, width, DropoutFunctor<T>{x.as<const T>(), y.as<T>(), width, length, dropout});
        });
    }

    void rotate(const RotateShape& shape, TensorView x, bool inverse) override
    {
        const float* table = m_launch.rotation(shape.length, *shape.frequencies);
        withStorage(x.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(
                shape.tokens, shape.heads * shape.headDim,
                RotateFunctor<T>{x.as<T>(), table, shape.length, shape.heads, shape.headDim, inverse ? -1.0f : 1.0f});
        });
    }

    void add(TensorView x, TensorView y, TensorView sum) override
    {
        withStorage(sum.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.each(sum.elements, AddFunctor<T>{x.as<const T>(), y.as<const T>(), sum.as<T>()});
        });
    }

    void swiGlu(TensorView gate, TensorView up, TensorView product) override
    {
        withStorage(product.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.each(product.elements, SwiGluFunctor<T>{gate.as<const T>(), up.as<const T>(), product.as<T>()});
        });
    }

    void swiGluGradient(TensorView gradient, TensorView gate, TensorView up, TensorView gradGate,
                        TensorView gradUp) override
    {
        withStorage(gradGate.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.each(gradGate.elements,
                          SwiGluGradientFunctor<T>{gradient.as<const T>(), gate.as<const T>(), up.as<const T>(),
                                                   gradGate.as<T>(), gradUp.as<T>()});
        });
    }

    void gelu(TensorView x, TensorView y) override
    {
        withStorage(y.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.each(y.elements, GeluFunctor<T>{x.as<const T>(), y.as<T>()});
        });
    }

    void geluGradient(TensorView gradient, TensorView x, TensorView gradX) override
    {
        withStorage(gradX.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.each(gradX.elements,
                          GeluGradientFunctor<T>{gradient.as<const T>(), x.as<const T>(), gradX.as<T>()});
        });
    }

    double crossEntropy(TensorView logits, TensorView labels, TensorView logSumExp, std::int64_t rows,
                        std::int64_t vocab) override
    {
        double loss = 0;
        withStorage(logits.dtype, [&](auto value) {
            using T = decltype(value);
            loss = m_launch.sum(rows, vocab,
                                CrossEntropyFunctor<T>{logits.as<const T>(), labels.as<const std::int64_t>(),
                                                       logSumExp.as<float>(), vocab});
        });
        return loss;
    }

    void crossEntropyGradient(TensorView logits, TensorView labels, TensorView logSumExp, std::int64_t rows,
                              std::int64_t vocab, float factor) override
    {
        withStorage(logits.dtype, [&](auto value) {
            using T = decltype(value);
            m_launch.rows(rows, vocab,
                          CrossEntropyGradientFunctor<T>{logits.as<T>(), labels.as<const std::int64_t>(),
                                                         logSumExp.as<const float>(), vocab, factor});
        });
    }

protected:
    Launch m_launch;

private:
    template <typename Body> static void withBoth(DType values, DType weights, const Body& body)
    {
        withStorage(values, [&](auto value) { withStorage(weights, [&](auto weight) { body(value, weight); }); });
    }

    template <typename Body> static void withNorm(const NormShape& shape, DType dtype, const Body& body)
    {
        withStorage(dtype, [&](auto value) {
            if (shape.mean)
                body(value, std::true_type{});
            else
                body(value, std::false_type{});
        });
    }

    /// Rows of `out`: `positions`; see SumPeriodicRowsFunctor.
    void sumPeriodic(TensorView in, TensorView out, std::int64_t rows, std::int64_t width, std::int64_t period,
                     std::int64_t positions)
    {
        const std::int64_t blocks = ceilDivide(width, kColumnBlock);
        withBoth(in.dtype, out.dtype, [&](auto value, auto weight) {
            using T = decltype(value);
            using W = decltype(weight);
            m_launch.rows(positions * blocks, ceilDivide(rows, period) * kColumnBlock,
                          SumPeriodicRowsFunctor<T, W>{in.as<const T>(), out.as<W>(), rows, width, period, blocks});
        });
    }
};

} // namespace shardwright
