#include "tests/executor/layers/reference_decoder.hpp"

#include <cmath>

#include "executor/layers/dropout.hpp"

namespace shardwright {

namespace {

using Vector = std::vector<double>;
using Rows = std::vector<Vector>; // a vector a token

std::size_t size(std::int64_t value)
{
    return static_cast<std::size_t>(value);
}

class Decoder {
public:
    Decoder(const Model& model, const Weights& weights, const Batch& batch)
        : m_arch(model.architecture), m_weights(weights), m_batch(batch), m_gpt(m_arch.modelType == "gpt2")
    {
    }

    double loss()
    {
        const std::string table = m_gpt ? "transformer.wte.weight" : "model.embed_tokens.weight";
        double total = 0;
        for (std::int64_t sequence = 0; sequence < m_batch.sequences; ++sequence) {
            m_sequence = sequence;
            Rows x;
            for (std::int64_t t = 0; t < m_batch.length; ++t) {
                const std::int64_t token = m_batch.tokens[size(sequence * m_batch.length + t)];
                x.push_back(row(table, token));
                if (m_gpt)
                    addTo(x.back(), row("transformer.wpe.weight", t));
            }
            drop(x, 0, DropoutPlace::Attention, m_arch.embeddingDropout);
            for (std::int64_t layer = 0; layer < m_arch.layers; ++layer) {
                m_layer = static_cast<int>(layer) + 1;
                x = m_gpt ? gptBlock(x, "transformer.h." + std::to_string(layer) + ".")
                          : llamaBlock(x, "model.layers." + std::to_string(layer) + ".");
            }
            x = norm(x, m_gpt ? "transformer.ln_f" : "model.norm");
            const std::string head = m_arch.tiedEmbedding ? table : "lm_head.weight";
            for (std::int64_t t = 0; t < m_batch.length; ++t) {
                const Vector logits = timesRows(x[size(t)], head, m_arch.vocab);
                double sum = 0;
                for (const double logit : logits)
                    sum += std::exp(logit);
                total += std::log(sum) - logits[size(m_batch.labels[size(sequence * m_batch.length + t)])];
            }
        }
        return total / static_cast<double>(m_batch.sequences * m_batch.length);
    }

private:
    const Vector& of(const std::string& name) const { return m_weights.at(name); }
    Vector row(const std::string& name, std::int64_t index) const
    {
        const Vector& all = of(name);
        const auto begin = all.begin() + index * m_arch.hidden;
        return {begin, begin + m_arch.hidden};
    }
    static void addTo(Vector& to, const Vector& from)
    {
        for (std::size_t i = 0; i < to.size(); ++i)
            to[i] += from[i];
    }
    /// Matrix (out, in) times x.
    Vector timesRows(const Vector& x, const std::string& name, std::int64_t out) const
    {
        const Vector& matrix = of(name);
        Vector y(size(out), 0.0);
        for (std::size_t o = 0; o < y.size(); ++o)
            for (std::size_t i = 0; i < x.size(); ++i)
                y[o] += matrix[o * x.size() + i] * x[i];
        return y;
    }
    Rows linear(const Rows& x, const std::string& module, std::int64_t out) const
    {
        const auto bias = m_weights.find(module + ".bias");
        Rows result;
        for (const Vector& token : x) {
            Vector y(size(out), 0.0);
            if (m_gpt) { // stored (in, out)
                const Vector& matrix = of(module + ".weight");
                for (std::size_t i = 0; i < token.size(); ++i)
                    for (std::size_t o = 0; o < y.size(); ++o)
                        y[o] += matrix[i * y.size() + o] * token[i];
            } else {
                y = timesRows(token, module + ".weight", out);
            }
            if (bias != m_weights.end())
                addTo(y, bias->second);
            result.push_back(y);
        }
        return result;
    }
    Rows norm(const Rows& x, const std::string& module) const
    {
        const Vector& weight = of(module + ".weight");
        Rows result = x;
        for (Vector& token : result) {
            const auto n = static_cast<double>(token.size());
            double mean = 0;
            if (m_gpt) {
                for (const double value : token)
                    mean += value / n;
                for (double& value : token)
                    value -= mean;
            }
            double squares = 0;
            for (const double value : token)
                squares += value * value / n;
            for (std::size_t i = 0; i < token.size(); ++i)
                token[i] = token[i] / std::sqrt(squares + m_arch.numerics.normEpsilon) * weight[i] +
                           (m_gpt ? of(module + ".bias")[i] : 0.0);
        }
        return result;
    }
    Rows headNorm(const Rows& x, const std::string& module) const
    {
        const std::size_t d = size(m_arch.headDim);
        Rows heads; // one after another
        for (const Vector& token : x)
            for (std::size_t from = 0; from < token.size(); from += d)
                heads.push_back({token.begin() + static_cast<std::ptrdiff_t>(from),
                                 token.begin() + static_cast<std::ptrdiff_t>(from + d)});
        heads = norm(heads, module);
        Rows result(x.size());
        for (std::size_t i = 0; i < heads.size(); ++i) {
            Vector& token = result[i * x.size() / heads.size()];
            token.insert(token.end(), heads[i].begin(), heads[i].end());
        }
        return result;
    }
    void rotate(Rows& x) const
    {
        const std::int64_t d = m_arch.headDim;
        for (std::size_t position = 0; position < x.size(); ++position)
            for (std::size_t head = 0; head < x[position].size() / size(d); ++head)
                for (std::int64_t j = 0; j < d / 2; ++j) {
                    const double angle =
                        static_cast<double>(position) /
                        std::pow(m_arch.numerics.ropeTheta, 2.0 * static_cast<double>(j) / static_cast<double>(d));
                    double& a = x[position][head * size(d) + size(j)];
                    double& b = x[position][head * size(d) + size(j + d / 2)];
                    const double turned = a * std::cos(angle) - b * std::sin(angle);
                    b = b * std::cos(angle) + a * std::sin(angle);
                    a = turned;
                }
    }
    /// 0 or 1 / (1 - p).
    double factor(int layer, DropoutPlace place, double probability, std::int64_t position, std::int64_t head,
                  std::int64_t column) const
    {
        if (probability == 0)
            return 1;
        const std::int64_t within = column % kDropoutColumns;
        const auto counter = static_cast<std::uint32_t>(column / kDropoutColumns * 16 + within % 16);
        const std::uint64_t key = randomBits(dropoutKey(m_batch.seed, layer, place),
                                             static_cast<std::uint64_t>(m_batch.firstSequence + m_sequence));
        const std::uint32_t number =
            philox({counter, static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(head), 0},
                   key)[size(within / 16)];
        return number < probability * 0x1p32 ? 0 : 1 / (1 - probability);
    }
    void drop(Rows& x, int layer, DropoutPlace place, double probability) const
    {
        for (std::size_t t = 0; t < x.size(); ++t)
            for (std::size_t i = 0; i < x[t].size(); ++i)
                x[t][i] *=
                    factor(layer, place, probability, static_cast<std::int64_t>(t), 0, static_cast<std::int64_t>(i));
    }
    Rows attention(const Rows& q, const Rows& k, const Rows& v) const
    {
        const std::int64_t window = m_arch.numerics.windowOf(m_layer - 1);
        const auto d = size(m_arch.headDim);
        Rows result(q.size(), Vector(q[0].size(), 0.0));
        for (std::int64_t head = 0; head < m_arch.heads; ++head) {
            const std::size_t from = size(head) * d;
            const std::size_t keyFrom = size(head / (m_arch.heads / m_arch.kvHeads)) * d;
            for (std::size_t i = 0; i < q.size(); ++i) {
                Vector p(i + 1, 0.0);
                double sum = 0;
                const std::size_t first = window > 0 && i >= size(window) ? i + 1 - size(window) : 0;
                for (std::size_t j = first; j <= i; ++j) {
                    for (std::size_t e = 0; e < d; ++e)
                        p[j] += q[i][from + e] * k[j][keyFrom + e];
                    p[j] = std::exp(p[j] / std::sqrt(static_cast<double>(d)));
                    sum += p[j];
                }
                for (std::size_t j = first; j <= i; ++j) {
                    p[j] *= factor(m_layer, DropoutPlace::Probabilities, m_arch.attentionDropout,
                                   static_cast<std::int64_t>(i), head, static_cast<std::int64_t>(j));
                    for (std::size_t e = 0; e < d; ++e)
                        result[i][from + e] += p[j] / sum * v[j][keyFrom + e];
                }
            }
        }
        return result;
    }
    static Rows sum(Rows x, const Rows& y)
    {
        for (std::size_t i = 0; i < x.size(); ++i)
            addTo(x[i], y[i]);
        return x;
    }

    Rows llamaBlock(const Rows& x, const std::string& p) const
    {
        const Rows n = norm(x, p + "input_layernorm");
        Rows q = linear(n, p + "self_attn.q_proj", m_arch.heads * m_arch.headDim);
        Rows k = linear(n, p + "self_attn.k_proj", m_arch.kvHeads * m_arch.headDim);
        const Rows v = linear(n, p + "self_attn.v_proj", m_arch.kvHeads * m_arch.headDim);
        if (m_arch.qkNorm) {
            q = headNorm(q, p + "self_attn.q_norm");
            k = headNorm(k, p + "self_attn.k_norm");
        }
        rotate(q);
        rotate(k);
        const Rows h = sum(x, linear(attention(q, k, v), p + "self_attn.o_proj", m_arch.hidden));
        const Rows m = norm(h, p + "post_attention_layernorm");
        Rows gate = linear(m, p + "mlp.gate_proj", m_arch.ffn);
        const Rows up = linear(m, p + "mlp.up_proj", m_arch.ffn);
        for (std::size_t t = 0; t < gate.size(); ++t)
            for (std::size_t i = 0; i < gate[t].size(); ++i)
                gate[t][i] *= up[t][i] / (1.0 + std::exp(-gate[t][i]));
        return sum(h, linear(gate, p + "mlp.down_proj", m_arch.hidden));
    }

    Rows gptBlock(const Rows& x, const std::string& p) const
    {
        const Rows joined = linear(norm(x, p + "ln_1"), p + "attn.c_attn", 3 * m_arch.hidden);
        Rows thirds[3];
        for (const Vector& token : joined)
            for (std::int64_t which = 0; which < 3; ++which)
                thirds[which].push_back(
                    {token.begin() + which * m_arch.hidden, token.begin() + (which + 1) * m_arch.hidden});
        Rows attended = linear(attention(thirds[0], thirds[1], thirds[2]), p + "attn.c_proj", m_arch.hidden);
        drop(attended, m_layer, DropoutPlace::Attention, m_arch.residualDropout);
        const Rows h = sum(x, attended);
        Rows wide = linear(norm(h, p + "ln_2"), p + "mlp.c_fc", m_arch.ffn);
        for (Vector& token : wide)
            for (double& value : token)
                value *=
                    0.5 *
                    (1.0 + std::tanh(std::sqrt(2.0 / std::acos(-1.0)) * (value + 0.044715 * value * value * value)));
        Rows narrow = linear(wide, p + "mlp.c_proj", m_arch.hidden);
        drop(narrow, m_layer, DropoutPlace::Mlp, m_arch.residualDropout);
        return sum(h, narrow);
    }

    const Architecture& m_arch;
    const Weights& m_weights;
    const Batch& m_batch;
    const bool m_gpt;
    std::int64_t m_sequence = 0; // at hand
    int m_layer = 0;             // position in Model::layers of the block at hand
};

} // namespace

double referenceLoss(const Model& model, const Weights& weights, const Batch& batch)
{
    return Decoder(model, weights, batch).loss();
}

} // namespace shardwright
