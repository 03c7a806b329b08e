#include "core/model_file.hpp"

#include <algorithm>
#include <array>
#include <filesystem>

#include <fmt/format.h>

#include "core/catalogue.hpp"
#include "core/json_cursor.hpp"
#include "core/model_families/families.hpp"

namespace shardwright {

namespace fs = std::filesystem;

namespace {

struct Family {
    std::string_view modelType;
    Model (*read)(const HfConfig&);
};

// Sorted by model_type.
constexpr std::array<Family, 21> kFamilies{{{"bloom", readBloom},
                                            {"deepseek_v2", readDeepseekV2},
                                            {"deepseek_v3", readDeepseekV3},
                                            {"falcon", readFalcon},
                                            {"gemma", readGemma},
                                            {"gemma2", readGemma2},
                                            {"generic-decoder", readGenericDecoder},
                                            {"gpt2", readGpt2},
                                            {"gpt_neox", readGptNeoX},
                                            {"gptj", readGptJ},
                                            {"llama", readLlama},
                                            {"mistral", readMistral},
                                            {"mixtral", readMixtral},
                                            {"mpt", readMpt},
                                            {"opt", readOpt},
                                            {"phi", readPhi},
                                            {"phi3", readPhi3},
                                            {"qwen2", readQwen2},
                                            {"qwen2_moe", readQwen2Moe},
                                            {"qwen3", readQwen3},
                                            {"qwen3_moe", readQwen3Moe}}};

const Family* findFamily(const JsonCursor& cursor)
{
    if (!cursor.expectObject())
        return nullptr;
    const auto member = cursor.require("model_type", "the architecture's name, such as \"llama\"");
    const auto modelType = member ? member->asString() : std::nullopt;
    if (!modelType)
        return nullptr;
    for (const Family& family : kFamilies)
        if (family.modelType == *modelType)
            return &family;
    const std::vector<std::string> known = supportedModelTypes();
    const std::string nearest = nearestWord(*modelType, known);
    member->complain(fmt::format("model_type \"{}\" is not supported", *modelType),
                     fmt::format("{}{}; any other decoder can be described as {}",
                                 nearest.empty() ? "" : "\"" + nearest + "\" perhaps; supported are ",
                                 fmt::join(known, ", "), describeGenericDecoder()));
    return nullptr;
}

void checkSize(const Model& model, const JsonCursor& cursor)
{
    std::int64_t tensors = 0;
    for (std::size_t type = 0; type < model.layerTypes.size(); ++type)
        tensors = checkedAdd(
            tensors, checkedMultiply(model.layerTypes[type].tensors(), model.layersOfType(static_cast<int>(type))));
    if (tensors > kMaximumTensors)
        cursor.complain(fmt::format("describes {} parameter tensors", tensors),
                        fmt::format("at most {}: fewer layers or experts", kMaximumTensors));
    model.parameters();
}

Model readFile(const fs::path& file, const std::string& id)
{
    return modelFromJson(parseJson(readTextFile(file.string()), file.string()), id, file.string());
}

/// The id of the shipped model that `folder` is, or the path as it was given.
std::string idOfFolder(const fs::path& folder)
{
    std::error_code error;
    const fs::path models = fs::weakly_canonical(folder, error).parent_path();
    const bool shipped = !error && models.filename() == "models" &&
                         fs::is_directory(models.parent_path() / "scenarios" / "clusters", error);
    return shipped ? fs::weakly_canonical(folder).filename().string() : folder.string();
}

} // namespace

std::vector<std::string> supportedModelTypes()
{
    std::vector<std::string> types;
    for (const Family& family : kFamilies)
        types.emplace_back(family.modelType);
    return types;
}

Model modelFromJson(const Json& config, const std::string& id, const std::string& file, const std::string& pointer)
{
    Findings findings(file);
    const JsonCursor cursor(config, findings, pointer);
    const Family* family = findFamily(cursor);
    findings.throwIfAny();
    Model model;
    try {
        model = family->read(HfConfig(cursor));
        checkSize(model, cursor);
    } catch (const NumberTooLarge& tooLarge) {
        cursor.complain(fmt::format("describes a model too large to count: {}", tooLarge.what()),
                        "dimensions whose product stays below 2^63");
    }
    findings.throwIfAny();
    model.id = id;
    model.source = file;
    model.architecture.modelType = family->modelType;
    return model;
}

Model readModel(const std::string& idOrPath)
{
    // A bare name is an id that ships before it is a file here; "./name" is always a file or folder.
    std::vector<std::string> shipped;
    const bool bareName = idOrPath.find('/') == std::string::npos;
    if (bareName) {
        shipped = modelIds();
        if (std::find(shipped.begin(), shipped.end(), idOrPath) != shipped.end())
            return readFile(fs::path(homeFolder()) / "models" / idOrPath / "config.json", idOrPath);
    }
    std::error_code ignored;
    if (fs::is_directory(idOrPath, ignored)) {
        const fs::path file = fs::path(idOrPath) / "config.json";
        if (!fs::exists(file, ignored))
            throw InputError(idOrPath, "", "is a folder without a config.json",
                             "a Hugging Face model folder, a config.json, or an id of a model that ships");
        return readFile(file, idOfFolder(idOrPath));
    }
    if (fs::exists(idOrPath, ignored))
        return readFile(idOrPath, idOrPath);
    if (!bareName)
        throw InputError(idOrPath, "", "there is no such file or folder",
                         "a config.json, a folder that holds one, or an id of a model that ships");
    const std::string nearest = nearestWord(idOrPath, shipped);
    throw InputError(idOrPath, "", "is neither a model that ships nor a file or folder here",
                     nearest.empty() ? fmt::format("one of {}", fmt::join(shipped, ", "))
                                     : "\"" + nearest + "\" perhaps");
}

} // namespace shardwright
