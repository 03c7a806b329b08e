// mpt, in both its lives. Hugging Face's MptForCausalLM has ALiBi and no biases; llm-foundry's MPT, which the same
// model_type names, follows its config: `no_bias`, `attn_config.alibi`, `learned_pos_emb` (ignored under ALiBi) and
// `max_seq_len`, to which the learned positions are sized. Names are equal in both
// (llmfoundry/models/mpt/modeling_mpt.py, layers/blocks.py).

#include <algorithm>

#include "core/model_families/families.hpp"

namespace shardwright {

Model readMpt(const HfConfig& config)
{
    Architecture a;
    a.hidden = config.size({"d_model", "hidden_size"}, "the width of the residual stream");
    a.layers = config.layers({"n_layers", "num_hidden_layers"});
    a.heads = config.size({"n_heads", "num_attention_heads"}, "the number of attention heads");
    a.vocab = config.size({"vocab_size"}, "the number of tokens in the vocabulary");
    a.maxPositions = config.size({"max_seq_len"}, "the sequence length, which sizes learned positions");
    a.ffn = checkedMultiply(config.sizeOr({"expansion_ratio"}, 4), a.hidden);
    a.norm = NormKind::LayerNorm;
    a.mlp = MlpKind::Plain;
    a.tiedEmbedding = config.flag("tie_word_embeddings", true);
    a.residualDropout = config.dropout("resid_pdrop", 0);
    a.embeddingDropout = config.dropout("emb_pdrop", 0);
    const bool bias = !config.flag("no_bias", true);
    a.kvHeads = a.heads;

    bool alibi = true;
    if (const auto attention = config.cursor().find("attn_config"))
        if (attention->expectObject()) {
            const HfConfig attentionConfig(*attention);
            alibi = attentionConfig.flag("alibi", true);
            a.qkNorm = attentionConfig.flag("qk_ln", false);
            a.attentionDropout = attentionConfig.dropout("attn_pdrop", 0);
            const std::string kind = attentionConfig.textOr("attn_type", "multihead_attention");
            a.kvHeads = attentionConfig.sizeOr({"kv_n_heads"}, kind == "multiquery_attention" ? 1 : a.heads);
        }
    const bool learnedPositions = config.flag("learned_pos_emb", true) && !alibi;
    if (const auto mlp = config.cursor().find("ffn_config"))
        if (mlp->expectObject()) {
            const std::string kind = HfConfig(*mlp).textOr("ffn_type", "mptmlp");
            if (kind != "mptmlp")
                mlp->complain("ffn_type is \"" + kind + "\"", "\"mptmlp\"");
        }
    config.expectDivides("n_heads", a.heads, "d_model", a.hidden);
    config.expectDivides("kv_n_heads", a.kvHeads, "n_heads", a.heads);
    config.stopIfWrong();
    a.headDim = a.valueHeadDim = a.hidden / a.heads;
    const std::int64_t keys = checkedMultiply(a.kvHeads, a.headDim);

    LayerBuilder embedding(LayerKind::Embedding, "transformer");
    embedding.embedding("wte", a.vocab, a.hidden);
    if (learnedPositions)
        embedding.embedding("wpe", a.maxPositions, a.hidden, ParameterRole::Position);

    LayerBuilder block(LayerKind::Block, "transformer.blocks.{}", bias || learnedPositions ? "MPTBlock" : "MptBlock");
    block.norm("norm_1", a.hidden, a.norm, bias)
        .linear("attn.Wqkv", a.hidden, checkedAdd(a.hidden, checkedMultiply(2, keys)), bias, ParameterRole::Attention);
    if (a.qkNorm)
        block.norm("attn.q_ln", a.hidden, a.norm, bias).norm("attn.k_ln", keys, a.norm, bias);
    block.linear("attn.out_proj", a.hidden, a.hidden, bias, ParameterRole::Attention)
        .norm("norm_2", a.hidden, a.norm, bias)
        .linear("ffn.up_proj", a.hidden, a.ffn, bias, ParameterRole::Mlp)
        .linear("ffn.down_proj", a.ffn, a.hidden, bias, ParameterRole::Mlp);

    LayerBuilder finalNorm(LayerKind::FinalNorm, "transformer.norm_f");
    finalNorm.norm("", a.hidden, a.norm, bias);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
