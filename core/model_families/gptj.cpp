// gptj: attention and MLP in parallel behind one LayerNorm; biases on the MLP and the head only.

#include "core/model_families/families.hpp"

namespace shardwright {

Model readGptJ(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"n_embd", "hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"n_layer", "num_hidden_layers"});
    a.heads = config.size({"n_head", "num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.sizeOr({"n_positions", "max_position_embeddings"}, 0);
    a.ffn = config.sizeOr({"n_inner"}, checkedMultiply(4, a.hidden));
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.parallelAttention = true;
    a.normsPerBlock = 1;
    a.tiedEmbedding = config.flag("tie_word_embeddings", false);
    a.attentionDropout = config.dropout("attn_pdrop", 0);
    a.residualDropout = config.dropout("resid_pdrop", 0);
    a.embeddingDropout = config.dropout("embd_pdrop", 0);
    config.expectDivides("n_head", a.heads, "n_embd", a.hidden);
    config.stopIfWrong();
    a.kvHeads = a.heads;
    a.headDim = a.valueHeadDim = a.hidden / a.heads;

    LayerBuilder embedding(LayerKind::Embedding, "transformer.wte");
    embedding.embedding("", a.vocab, a.hidden);

    LayerBuilder block(LayerKind::Block, "transformer.h.{}", "GPTJBlock");
    block.norm("ln_1", a.hidden, a.norm)
        .linear("attn.q_proj", a.hidden, a.hidden, false, ParameterRole::Attention)
        .linear("attn.k_proj", a.hidden, a.hidden, false, ParameterRole::Attention)
        .linear("attn.v_proj", a.hidden, a.hidden, false, ParameterRole::Attention)
        .linear("attn.out_proj", a.hidden, a.hidden, false, ParameterRole::Attention)
        .linear("mlp.fc_in", a.hidden, a.ffn, true, ParameterRole::Mlp)
        .linear("mlp.fc_out", a.ffn, a.hidden, true, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "transformer.ln_f");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", true));
}

} // namespace shardwright
