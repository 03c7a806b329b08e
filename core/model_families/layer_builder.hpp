#pragma once

// Building layers parameter by parameter, in the order of the forward pass, under their Hugging Face names.

#include <string>

#include "core/model.hpp"

namespace shardwright {

class LayerBuilder {
public:
    LayerBuilder(LayerKind kind, std::string prefix, std::string className = {});

    /// nn.Linear: weight (out, in) and, where it has one, bias (out).
    LayerBuilder& linear(const std::string& module, std::int64_t in, std::int64_t out, bool bias, ParameterRole role,
                         std::int64_t repeat = 1);

    /// GPT-2's Conv1D, a linear layer stored the other way round: weight (in, out), bias (out).
    LayerBuilder& conv1d(const std::string& module, std::int64_t in, std::int64_t out, ParameterRole role);

    /// nn.Embedding: weight (rows, width).
    LayerBuilder& embedding(const std::string& module, std::int64_t rows, std::int64_t width,
                            ParameterRole role = ParameterRole::Embedding);

    /// RMSNorm: weight (size). LayerNorm: weight (size) and, unless `bias` is false, bias (size).
    LayerBuilder& norm(const std::string& module, std::int64_t size, NormKind kind, bool bias = true);

    /// Marks the block as one that routes tokens to experts.
    LayerBuilder& mixtureOfExperts();

    /// The layer; also checks that its size can be counted (NumberTooLarge otherwise).
    LayerType build() const;

private:
    LayerBuilder& add(const std::string& module, const char* tensor, std::vector<std::int64_t> shape,
                      ParameterRole role, std::int64_t repeat = 1);

    LayerType m_layer;
};

/// The attention of Llama and its relatives: q, k, v and output projections named self_attn.*.
struct AttentionStyle {
    bool qkvBias = false;
    bool outputBias = false;
    const char* output = "o_proj";
    std::int64_t qkNormSize = 0; // 0: queries and keys are not normalised
    const char* queryNorm = "q_norm";
    const char* keyNorm = "k_norm";
};
void addAttention(LayerBuilder& layer, const Architecture& a, const AttentionStyle& style);

/// gate, up and down projection under `prefix` ("mlp", "mlp.shared_expert", "mlp.experts.{}").
void addGatedMlp(LayerBuilder& layer, const std::string& prefix, std::int64_t hidden, std::int64_t ffn, bool bias,
                 ParameterRole role, std::int64_t repeat = 1);

/// The head named `module`: a linear layer over the vocabulary; without weight when it reuses the embedding's tensor.
LayerType headLayer(const Architecture& a, const char* module, bool bias);

/// Embedding, equal blocks, final norm and head put in order.
Model assembled(const Architecture& architecture, LayerType embedding, const LayerType& block, LayerType finalNorm,
                LayerType head);

/// The same with two kinds of block: isSparse[i] says whether block i is `sparse` or `dense`.
Model assembledMixed(const Architecture& architecture, LayerType embedding, const LayerType& dense,
                     const LayerType& sparse, const std::vector<bool>& isSparse, LayerType finalNorm, LayerType head);

} // namespace shardwright
