// generic-decoder: Shardwright's own description of a decoder that no Hugging Face class stands for (GPT-3 175B, the
// models of papers). Unlike Hugging Face's configs it is read strictly: a key it does not know is an error.

#include "core/json_cursor.hpp"
#include "core/model_families/families.hpp"

namespace shardwright {

namespace {

const std::vector<std::string> kKnownKeys = {"model_type",
                                             "hidden_size",
                                             "num_hidden_layers",
                                             "num_attention_heads",
                                             "intermediate_size",
                                             "vocab_size",
                                             "num_key_value_heads",
                                             "head_dim",
                                             "max_position_embeddings",
                                             "norm",
                                             "mlp",
                                             "bias",
                                             "fused_qkv",
                                             "parallel_attention",
                                             "learned_positions",
                                             "tie_word_embeddings",
                                             "dropout",
                                             "num_experts",
                                             "num_experts_per_tok",
                                             "moe_intermediate_size",
                                             "shared_expert_intermediate_size",
                                             "layer_class",
                                             "_source"};

void addMlp(LayerBuilder& block, const Architecture& a, const std::string& prefix, std::int64_t ffn, bool bias,
            ParameterRole role, std::int64_t repeat = 1)
{
    if (a.mlp == MlpKind::Gated)
        return addGatedMlp(block, prefix, a.hidden, ffn, bias, role, repeat);
    block.linear(prefix + ".up_proj", a.hidden, ffn, bias, role, repeat)
        .linear(prefix + ".down_proj", ffn, a.hidden, bias, role, repeat);
}

} // namespace

std::string describeGenericDecoder()
{
    return "\"generic-decoder\" with hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and "
           "vocab_size, and optionally num_key_value_heads (num_attention_heads), head_dim (hidden_size / "
           "num_attention_heads), max_position_embeddings, norm (\"rms\" or \"layer\"), mlp (\"gated\" or \"plain\"), "
           "bias (false), fused_qkv (false), parallel_attention (false), learned_positions (false), "
           "tie_word_embeddings (false), dropout (0), num_experts (0) with num_experts_per_tok, "
           "moe_intermediate_size and shared_expert_intermediate_size (0), layer_class (\"DecoderLayer\")";
}

Model readGenericDecoder(const HfConfig& config)
{
    const JsonCursor& cursor = config.cursor();
    cursor.rejectUnknownKeys(kKnownKeys);
    Architecture a = commonArchitecture(config, {});
    cursor.read("norm", a.norm);
    cursor.read("mlp", a.mlp);
    const bool bias = config.flag("bias", false);
    const bool fusedQkv = config.flag("fused_qkv", false);
    const bool learnedPositions = config.flag("learned_positions", false);
    a.parallelAttention = config.flag("parallel_attention", false);
    a.normsPerBlock = a.parallelAttention ? 1 : 2;
    a.attentionDropout = a.residualDropout = a.embeddingDropout = config.dropout("dropout", 0);
    a.experts = config.sizeOr({"num_experts"}, 0, 0);
    if (a.experts > 0) {
        a.expertsPerToken = config.size({"num_experts_per_tok"}, "the number of experts a token is routed to");
        a.expertFfn = config.size({"moe_intermediate_size"}, "the width of each expert");
        a.sharedExpertFfn = config.sizeOr({"shared_expert_intermediate_size"}, 0, 0);
        config.expectRouting(a.expertsPerToken, a.experts);
    } else {
        a.ffn = config.size({"intermediate_size"}, "the width of the MLP");
    }
    if (learnedPositions && a.maxPositions == 0)
        config.size({"max_position_embeddings"}, "the number of learned positions");
    const std::string layerClass = config.textOr("layer_class", "DecoderLayer");
    config.stopIfWrong();

    LayerBuilder embedding(LayerKind::Embedding, "model");
    embedding.embedding("embed_tokens", a.vocab, a.hidden);
    if (learnedPositions)
        embedding.embedding("embed_positions", a.maxPositions, a.hidden, ParameterRole::Position);

    LayerBuilder block(LayerKind::Block, "model.layers.{}", layerClass);
    block.norm("input_layernorm", a.hidden, a.norm);
    if (fusedQkv) {
        const std::int64_t queries = checkedMultiply(a.heads, a.headDim);
        const std::int64_t keys = checkedMultiply(a.kvHeads, a.headDim);
        block
            .linear("self_attn.qkv_proj", a.hidden, checkedAdd(queries, checkedMultiply(2, keys)), bias,
                    ParameterRole::Attention)
            .linear("self_attn.o_proj", queries, a.hidden, bias, ParameterRole::Attention);
    } else {
        addAttention(block, a, {.qkvBias = bias, .outputBias = bias});
    }
    if (!a.parallelAttention)
        block.norm("post_attention_layernorm", a.hidden, a.norm);
    if (a.experts > 0) {
        block.linear("mlp.gate", a.hidden, a.experts, false, ParameterRole::Router).mixtureOfExperts();
        addMlp(block, a, "mlp.experts.{}", a.expertFfn, bias, ParameterRole::Expert, a.experts);
        if (a.sharedExpertFfn > 0)
            addMlp(block, a, "mlp.shared_expert", a.sharedExpertFfn, bias, ParameterRole::SharedExpert);
    } else {
        addMlp(block, a, "mlp", a.ffn, bias, ParameterRole::Mlp);
    }

    LayerBuilder finalNorm(LayerKind::FinalNorm, "model.norm");
    finalNorm.norm("", a.hidden, a.norm);
    return assembled(a, embedding.build(), block.build(), finalNorm.build(), headLayer(a, "lm_head", false));
}

} // namespace shardwright
