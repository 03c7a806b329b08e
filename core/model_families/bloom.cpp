// bloom: ALiBi instead of positions, a LayerNorm right behind the embedding, fused qkv, tied head.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readBloom(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"n_embed", "hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"n_layer", "num_hidden_layers"});
    a.heads = config.size({"n_head", "num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.sizeOr({"seq_length"}, 0);
    a.ffn = checkedMultiply(4, a.hidden);
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.tiedEmbedding = config.flag("tie_word_embeddings", true);
    a.attentionDropout = config.dropout("attention_dropout", 0);
    a.residualDropout = config.dropout("hidden_dropout", 0);
    config.expectDivides("n_head", a.heads, "hidden_size", a.hidden);
    config.stopIfWrong();
    a.kvHeads = a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;

    LayerBuilder embedding(LayerKind::Embedding, "transformer");
    embedding.embedding("word_embeddings", a.vocab, a.hidden).norm("word_embeddings_layernorm", a.hidden, a.norm);

    LayerBuilder block(LayerKind::Block, "transformer.h.{}", "BloomBlock");
    block.norm("input_layernorm", a.hidden, a.norm)
        .linear("self_attention.query_key_value", a.hidden, checkedMultiply(3, a.hidden), true,
                ParameterRole::Attention)
        .linear("self_attention.dense", a.hidden, a.hidden, true, ParameterRole::Attention)
        .norm("post_attention_layernorm", a.hidden, a.norm)
        .linear("mlp.dense_h_to_4h", a.hidden, a.ffn, true, ParameterRole::Mlp)
        .linear("mlp.dense_4h_to_h", a.ffn, a.hidden, true, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "transformer.ln_f");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
