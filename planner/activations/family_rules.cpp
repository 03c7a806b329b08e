#include "planner/activations/family_rules.hpp"

#include <algorithm>
#include <initializer_list>
#include <string_view>

namespace shardwright {

namespace {

bool isAny(std::string_view type, std::initializer_list<std::string_view> types)
{
    return std::find(types.begin(), types.end(), type) != types.end();
}

bool repeatsHeads(const Model& model, const Training& training)
{
    const Architecture& a = model.architecture;
    if (a.kvHeads >= a.heads || a.kvLoraRank > 0)
        return false;
    // torchtitan's Attention.forward calls repeat_kv whatever kernel follows; FalconAttention._split_heads of the new
    // decoder architecture broadcasts and flattens.
    if (training.implementation == Implementation::Torchtitan ||
        (a.modelType == "falcon" && a.kvHeads > 1 && a.normsPerBlock == 2))
        return true;
    if (training.attention == Attention::Eager)
        return a.modelType != "falcon"; // multi-query falcon multiplies with a broadcast view
    // transformers' sdpa_attention_forward passes enable_gqa where there is no mask; before torch had it, it copied.
    return training.implementation == Implementation::HuggingFace &&
           (training.attention == Attention::MaskedSdpa ||
            (training.attention == Attention::Sdpa && training.loss == LossKind::ShiftedCopy));
}

} // namespace

FamilyRules familyRules(const Model& model, const Training& training)
{
    const Architecture& a = model.architecture;
    const std::string_view type = a.modelType;
    FamilyRules rules;
    rules.rotary =
        !isAny(type, {"gpt2", "opt", "bloom", "mpt"}) && (type != "generic-decoder" || a.norm == NormKind::RmsNorm);
    rules.repeatsHeads = repeatsHeads(model, training);
    const bool huggingFace = training.implementation == Implementation::HuggingFace;
    if (training.implementation == Implementation::Megatron)
        rules.softmax = SoftmaxKind::InPlaceType; // megatron/core/fusions/fused_softmax.py
    if (!huggingFace)
        return rules;
    rules.fusedGateUp = type == "phi3";
    rules.copiesFusedQkv = type == "falcon"; // FalconAttention._split_heads indexes with a list
    // Phi3 and the partial rotary embeddings concatenate; what they make is contiguous by head.
    rules.copiesAttentionOut = isAny(type, {"phi", "phi3", "gpt_neox"}) && training.attention != Attention::Eager;
    rules.gatesSharedExpert = type == "qwen2_moe"; // Qwen2MoeSparseMoeBlock.shared_expert_gate
    rules.scoresInFp32 = type == "gptj";           // GPTJAttention._attn
    rules.softcap = type == "gemma2";              // attn_logit_softcapping
    if (isAny(type, {"gpt2", "falcon"}))           // GPT2 and Falcon call softmax without a dtype
        rules.softmax = SoftmaxKind::InPlaceType;
    if (isAny(type, {"gpt2", "gptj", "phi"}) && !training.compile)
        rules.activation = Activation::ComposedGelu; // transformers/activations.py NewGELUActivation
    else if (type == "opt")
        rules.activation = Activation::Relu;
    rules.normWeightInFp32 = isAny(type, {"gemma", "gemma2"});           // GemmaRMSNorm.forward
    rules.scalesEmbedding = rules.normWeightInFp32;                      // GemmaModel: embeddings times sqrt(hidden)
    rules.routesInFp32 = type == "deepseek_v3" || type == "deepseek_v2"; // DeepseekV3TopkRouter.forward
    rules.fp32RoutingWeights = rules.routesInFp32 || type == "mixtral";  // their top-k weights stay fp32
    return rules;
}

} // namespace shardwright
