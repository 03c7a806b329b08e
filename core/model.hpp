#pragma once

// A model as sharding sees it: its parameters one by one, in the layers and leaf modules that own them, in forward
// order; and the dimensions that size its activations. Layers that are alike share one LayerType.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.hpp"

namespace shardwright {

enum class ParameterRole : std::uint8_t {
    Embedding,
    Position,
    Attention,
    Mlp,
    Expert,
    SharedExpert,
    Router,
    Norm,
    Head,
    Lora
};

/// One parameter tensor of a layer, or `repeat` equal ones (the experts of a mixture layer).
struct ParameterSpec {
    std::string name; // Hugging Face name within its layer: "self_attn.q_proj.weight"; "{}" stands for the expert index
    std::string module; // leaf module that owns it directly: "self_attn.q_proj"; "{}" as in name; empty when the layer
                        // is that module itself ("model.embed_tokens")
    std::vector<std::int64_t> shape;
    std::int64_t numel = 0; // product of shape; of ONE instance
    std::int64_t repeat = 1;
    ParameterRole role = ParameterRole::Mlp;
    bool trainable = true;
    bool inputFirst = false; // a matrix stored (in, out): GPT-2's Conv1D; linear layers store (out, in)
};

enum class LayerKind : std::uint8_t { Embedding, Block, FinalNorm, Head };

/// What equal layers have in common. Parameters stand in the order of the forward pass.
struct LayerType {
    LayerKind kind = LayerKind::Block;
    std::string className; // the class that wrap policies name: "LlamaDecoderLayer"; empty outside blocks
    std::string
        prefix; // full name prefix: "model.layers.{}" for blocks ("{}" is the block index), "model.embed_tokens"
    std::vector<ParameterSpec> parameters;
    bool mixtureOfExperts = false; // this block routes tokens to experts

    std::int64_t numel() const;          // elements of all parameters, repeats included
    std::int64_t trainableNumel() const; // of those, the trainable ones
    std::int64_t tensors() const;        // number of parameter tensors, repeats included
};

enum class NormKind : std::uint8_t { RmsNorm, LayerNorm };
template <> struct EnumNames<NormKind> {
    static constexpr std::array<std::pair<NormKind, std::string_view>, 2> table{
        {{NormKind::RmsNorm, "rms"}, {NormKind::LayerNorm, "layer"}}};
};

enum class MlpKind : std::uint8_t { Gated, Plain }; // Gated: gate, up, down (SwiGLU, GeGLU); Plain: two matrices (GELU)
template <> struct EnumNames<MlpKind> {
    static constexpr std::array<std::pair<MlpKind, std::string_view>, 2> table{
        {{MlpKind::Gated, "gated"}, {MlpKind::Plain, "plain"}}};
};

/// How rotary frequencies are stretched for longer contexts, in the words of transformers' rope_type. Linear: all by a
/// factor. Dynamic: by a base that grows with the sequence. Yarn: arXiv 2309.00071. Llama3: Llama 3.1's.
enum class RopeKind : std::uint8_t { Default, Linear, Dynamic, Yarn, Llama3 };
template <> struct EnumNames<RopeKind> {
    static constexpr std::array<std::pair<RopeKind, std::string_view>, 5> table{{{RopeKind::Default, "default"},
                                                                                 {RopeKind::Linear, "linear"},
                                                                                 {RopeKind::Dynamic, "dynamic"},
                                                                                 {RopeKind::Yarn, "yarn"},
                                                                                 {RopeKind::Llama3, "llama3"}}};
};

struct RopeScaling {
    RopeKind kind = RopeKind::Default;
    double factor = 1;
    std::int64_t originalPositions = 0; // context length before stretching
    double lowFrequency = 1;            // Llama3: turns within that length, below which a frequency is stretched whole
    double highFrequency = 4;           // ... and above which it stays
    double betaFast = 32;               // Yarn: the same two bounds
    double betaSlow = 1;
    bool truncate = true;       // Yarn: bounds at whole elements
    double attentionFactor = 1; // of cosines and sines
};

/// What a decoder computes beside its dimensions: no size depends on it, its results do. Read for the families that
/// shardrun trains.
struct Numerics {
    double normEpsilon = 1e-6;
    double ropeTheta = 10000;
    RopeScaling rope;
    double initializerRange = 0.02;  // standard deviation of first weights
    std::int64_t slidingWindow = 0;  // tokens that a query sees, itself included; 0 = all before it
    std::vector<bool> windowed;      // by block, whether it has the window; empty = every block
    std::vector<std::string> others; // settings that change what is computed otherwise, in the config's words

    /// Tokens that a query of block `block` sees; 0 = all before it.
    std::int64_t windowOf(std::int64_t block) const
    {
        return windowed.empty() || windowed[static_cast<std::size_t>(block)] ? slidingWindow : 0;
    }
};

/// Dimensions of a decoder, in elements. 0 where the architecture has no such thing.
struct Architecture {
    std::string modelType; // Hugging Face model_type
    std::int64_t hidden = 0;
    std::int64_t layers = 0; // blocks
    std::int64_t heads = 0;
    std::int64_t kvHeads = 0;
    std::int64_t headDim = 0; // query/key head size (DeepSeek-V3: nope + rope)
    std::int64_t valueHeadDim = 0;
    std::int64_t ffn = 0; // of dense blocks
    std::int64_t vocab = 0;
    std::int64_t maxPositions = 0; // context length the config declares
    NormKind norm = NormKind::RmsNorm;
    MlpKind mlp = MlpKind::Gated;
    bool parallelAttention = false; // attention and MLP start from the same residual input: through one norm (gptj,
                                    // phi, falcon-7b) or, where normsPerBlock is 2, one each (gpt_neox, falcon-40b)
    bool tiedEmbedding = false;     // head reuses the embedding's tensor
    int normsPerBlock = 2;
    bool qkNorm = false; // queries and keys are normalised too; not counted in normsPerBlock
    std::int64_t experts = 0;
    std::int64_t expertsPerToken = 0;
    std::int64_t expertFfn = 0;
    std::int64_t sharedExpertFfn = 0;
    std::int64_t qLoraRank = 0; // multi-head latent attention
    std::int64_t kvLoraRank = 0;
    std::int64_t qkRopeHeadDim = 0;
    std::int64_t qkNopeHeadDim = 0;
    double attentionDropout = 0; // of attention probabilities
    double residualDropout = 0;  // of what attention and MLP add to the residual stream
    double embeddingDropout = 0;
    Numerics numerics;
    double dropout() const { return std::max({attentionDropout, residualDropout, embeddingDropout}); }
};

struct Model {
    std::string id;     // "llama-2-7b", or the path it was read from
    std::string source; // file it was read from
    Architecture architecture;
    std::vector<LayerType> layerTypes;
    std::vector<int> layers; // forward order; each an index into layerTypes: embedding, blocks, final norm, head

    const LayerType& layer(std::size_t position) const
    {
        return layerTypes[static_cast<std::size_t>(layers[position])];
    }
    std::int64_t parameters() const;          // total elements; a tied tensor counts once
    std::int64_t trainableParameters() const; // elements that require a gradient
    std::int64_t activeParameters() const;    // elements that one token meets (top-k experts)
    std::int64_t largestTensor() const;       // elements of the largest single parameter
    std::int64_t layersOfType(int type) const;
};

/// The leaf modules of a layer in forward order: of each, the indices into LayerType::parameters of what it owns
/// directly. An adapter (LoRA) belongs to the module that it adapts.
struct ModuleParameters {
    std::string name; // within the layer: "self_attn.q_proj"; "{}" for experts
    std::vector<int> parameters;
};
std::vector<ModuleParameters> parametersByModule(const LayerType& type);

/// One parameter with its full name, for listings and tests.
struct NamedParameter {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t numel = 0;
    std::int64_t layer = 0; // position in Model::layers
    bool trainable = true;
};

/// Every parameter of the model by its Hugging Face name, in forward order.
std::vector<NamedParameter> listParameters(const Model& model);

/// Low-rank adapters (LoRA, arXiv 2106.09685): every target matrix W (out x in) is frozen and gains A (rank x in) and
/// B (out x rank), both trainable.
struct Lora {
    std::int64_t rank = 16;
    // Module names or their last parts, as in peft ("q_proj", "self_attn.q_proj", "lm_head"); empty = all linear
    // modules of blocks but routers.
    std::vector<std::string> targetModules;
    bool trainEmbeddings = false; // embedding and head stay trainable (modules_to_save)
    bool trainNorms = false;
    DType adapterDtype = DType::Fp32; // peft keeps adapters in fp32 unless told otherwise
    std::optional<DType> baseDtype;   // QLoRA: dtype the frozen base is stored in (nf4, int8); absent = load dtype
};

/// The model with adapters added and everything else frozen. A target that matches no module is an InputError naming it
/// and the modules there are.
Model applyLora(const Model& model, const Lora& lora, const std::string& file, const std::string& place);

} // namespace shardwright
