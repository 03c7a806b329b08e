// First weights from files with Hugging Face names.

#include <algorithm>
#include <filesystem>
#include <set>
#include <vector>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "executor/state/safetensors.hpp"
#include "executor/state/sources.hpp"

namespace shardwright {

namespace {

constexpr const char* kIndexName = "model.safetensors.index.json"; // transformers SAFE_WEIGHTS_INDEX_NAME
constexpr const char* kFileName = "model.safetensors";             // transformers SAFE_WEIGHTS_NAME

/// The files that `path` stands for, in the order of their names.
std::vector<std::string> filesOf(const std::string& path)
{
    namespace fs = std::filesystem;
    if (!fs::is_directory(path))
        return {path};
    const fs::path index = fs::path(path) / kIndexName;
    if (!fs::exists(index)) {
        if (fs::exists(fs::path(path) / kFileName))
            return {(fs::path(path) / kFileName).string()};
        throw InputError(path, "folder", "holds no weights", fmt::format("{} or {}", kFileName, kIndexName));
    }
    const Json json = parseJson(readTextFile(index.string()), index.string());
    Findings findings(index.string());
    const JsonCursor cursor(json, findings);
    std::vector<std::string> files;
    if (const auto map = cursor.require("weight_map", "which file holds which tensor"); map && map->expectObject())
        for (const auto& [name, file] : map->json().items()) {
            if (!file.is_string() || fs::path(file.get<std::string>()).has_parent_path()) {
                map->complain("\"" + name + "\" is in no file of this folder: " + file.dump(), "a file's name");
                continue;
            }
            const std::string full = (fs::path(path) / file.get<std::string>()).string();
            if (std::find(files.begin(), files.end(), full) == files.end())
                files.push_back(full);
        }
    findings.throwIfAny();
    return files;
}

class SafetensorsWeights final : public WeightSource {
public:
    SafetensorsWeights(const Model& model, const std::string& path)
    {
        for (const std::string& file : filesOf(path))
            m_files.push_back(std::make_unique<SafetensorsFile>(file));
        Findings findings(path);
        for (const NamedParameter& parameter : listParameters(model)) {
            const Place place = find(parameter.name);
            m_places.push_back(place);
            if (place.tensor == nullptr)
                findings.add(parameter.name, "is not in the file", fmt::format("shape {}", text(parameter.shape)));
            else if (place.tensor->shape != parameter.shape)
                findings.add(parameter.name, fmt::format("has shape {}", text(place.tensor->shape)),
                             fmt::format("{}, as the model's config says", text(parameter.shape)));
            else if (!place.tensor->otherDtype.empty() || place.tensor->dtype == DType::Int64)
                findings.add(parameter.name, fmt::format("has elements of {}", place.tensor->dtypeName()),
                             "F32, F16 or BF16");
        }
        findings.throwIfAny();
    }

    std::vector<std::string> unused() const override
    {
        std::set<const StoredTensor*> used;
        for (const Place& place : m_places)
            used.insert(place.tensor);
        std::vector<std::string> names;
        for (const auto& file : m_files)
            for (const StoredTensor& tensor : file->header().tensors)
                if (used.count(&tensor) == 0)
                    names.push_back(tensor.name);
        return names;
    }

    void read(std::int32_t tensor, std::int64_t first, std::int64_t count, float* to) const override
    {
        const Place& place = m_places[static_cast<std::size_t>(tensor)];
        place.file->read(*place.tensor, first, count, to);
    }

private:
    struct Place {
        const SafetensorsFile* file = nullptr;
        const StoredTensor* tensor = nullptr;
    };

    static std::string text(const std::vector<std::int64_t>& shape)
    {
        return fmt::format("({})", fmt::join(shape, ", "));
    }

    /// Checkpoints of the bare model lack its prefix: "h.0.ln_1.weight" for "transformer.h.0.ln_1.weight".
    Place find(const std::string& name) const
    {
        const std::size_t dot = name.find('.');
        for (const std::string& candidate : {name, dot == std::string::npos ? name : name.substr(dot + 1)})
            for (const auto& file : m_files)
                if (const StoredTensor* tensor = file->header().find(candidate))
                    return {file.get(), tensor};
        return {};
    }

    std::vector<std::unique_ptr<SafetensorsFile>> m_files;
    std::vector<Place> m_places;
};

} // namespace

std::unique_ptr<WeightSource> safetensorsWeights(const Model& model, const std::string& path)
{
    return std::make_unique<SafetensorsWeights>(model, path);
}

} // namespace shardwright
