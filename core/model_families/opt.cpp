// opt: learned positions, LayerNorm before (or, opt-350m, after) each part, plain MLP, tied head.

#include <algorithm>

#include "core/model_families/families.hpp"

namespace shardwright {

Model readOpt(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"num_hidden_layers"});
    a.heads = config.size({"num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.ffn = config.size({"ffn_dim"}, "the width of the MLP");
    a.maxPositions = config.size({"max_position_embeddings"}, "the number of learned positions");
    const std::int64_t embeddingWidth = config.sizeOr({"word_embed_proj_dim"}, a.hidden);
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.tiedEmbedding = config.flag("tie_word_embeddings", true);
    // OPTConfig: dropout 0.1, attention_dropout 0.
    a.residualDropout = config.dropout("dropout", 0.1);
    a.attentionDropout = config.dropout("attention_dropout", 0);
    const bool bias = config.flag("enable_bias", true);
    const bool normHasWeights = config.flag("layer_norm_elementwise_affine", true);
    const bool normFirst = config.flag("do_layer_norm_before", true);
    const bool finalNormRemoved = config.flag("_remove_final_layer_norm", false);
    config.expectDivides("num_attention_heads", a.heads, "hidden_size", a.hidden);
    config.stopIfWrong();
    a.kvHeads = a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;

    const auto addNorm = [&](LayerBuilder& layer, const char* module) {
        if (normHasWeights)
            layer.norm(module, a.hidden, a.norm);
    };
    LayerBuilder embedding(LayerKind::Embedding, "model.decoder");
    embedding.embedding("embed_tokens", a.vocab, embeddingWidth);
    if (embeddingWidth != a.hidden)
        embedding.linear("project_in", embeddingWidth, a.hidden, false, ParameterRole::Embedding);
    constexpr std::int64_t kPositionOffset = 2; // OPTLearnedPositionalEmbedding keeps two rows more than positions
    embedding.embedding("embed_positions", checkedAdd(a.maxPositions, kPositionOffset), a.hidden,
                        ParameterRole::Position);

    LayerBuilder block(LayerKind::Block, "model.decoder.layers.{}", "OPTDecoderLayer");
    if (normFirst)
        addNorm(block, "self_attn_layer_norm");
    addAttention(block, a, {.qkvBias = bias, .outputBias = bias, .output = "out_proj"});
    addNorm(block, normFirst ? "final_layer_norm" : "self_attn_layer_norm");
    block.linear("fc1", a.hidden, a.ffn, bias, ParameterRole::Mlp)
        .linear("fc2", a.ffn, a.hidden, bias, ParameterRole::Mlp);
    if (!normFirst)
        addNorm(block, "final_layer_norm");

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.decoder");
    if (normFirst && !finalNormRemoved)
        addNorm(finalNorm, "final_layer_norm");
    if (embeddingWidth != a.hidden)
        finalNorm.linear("project_out", a.hidden, embeddingWidth, false, ParameterRole::Head);

    Architecture head = a;
    head.hidden = embeddingWidth;
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(head, "lm_head", false));
}

} // namespace shardwright
