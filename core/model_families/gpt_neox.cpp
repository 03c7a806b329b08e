// gpt_neox (GPT-NeoX-20B, Pythia): rotary positions, fused qkv, LayerNorm, an untied head called embed_out.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readGptNeoX(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"num_hidden_layers"});
    a.heads = config.size({"num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    a.maxPositions = config.sizeOr({"max_position_embeddings"}, 0);
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.parallelAttention = config.flag("use_parallel_residual", true);
    a.tiedEmbedding = config.flag("tie_word_embeddings", false);
    a.attentionDropout = config.dropout("attention_dropout", 0);
    a.residualDropout = config.dropout("hidden_dropout", 0);
    a.embeddingDropout = a.residualDropout; // GPTNeoXModel.emb_dropout
    const bool attentionBias = config.flag("attention_bias", true);
    config.expectDivides("num_attention_heads", a.heads, "hidden_size", a.hidden);
    config.stopIfWrong();
    a.kvHeads = a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;

    LayerBuilder embedding(LayerKind::Embedding, "gpt_neox.embed_in");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "gpt_neox.layers.{}", "GPTNeoXLayer");
    block.norm("input_layernorm", a.hidden, a.norm)
        .linear("attention.query_key_value", a.hidden, checkedMultiply(3, a.hidden), attentionBias,
                ParameterRole::Attention)
        .linear("attention.dense", a.hidden, a.hidden, attentionBias, ParameterRole::Attention)
        .norm("post_attention_layernorm", a.hidden, a.norm)
        .linear("mlp.dense_h_to_4h", a.hidden, a.ffn, true, ParameterRole::Mlp)
        .linear("mlp.dense_4h_to_h", a.ffn, a.hidden, true, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "gpt_neox.final_layer_norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "embed_out", false));
}

} // namespace shardwright
