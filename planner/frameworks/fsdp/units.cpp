#include "planner/frameworks/fsdp/units.hpp"

#include <algorithm>
#include <map>

namespace shardwright {

namespace {

constexpr int kRoot = -1;

/// Which unit of its layer each module belongs to under the size policy: torch wraps children before their parent, and
/// a parent only when what its children left over is still large enough. Returns group numbers, kRoot for the rest.
std::vector<int> wrapBySize(const std::vector<LeafModule>& modules, std::int64_t minimum)
{
    std::vector<int> group(modules.size(), kRoot);
    int groups = 0;
    // Paths of the module tree, deepest first: "self_attn.q_proj", then "self_attn", then "".
    std::vector<std::string> paths;
    for (const LeafModule& module : modules) {
        std::string path = module.name;
        while (true) {
            if (std::find(paths.begin(), paths.end(), path) == paths.end())
                paths.push_back(path);
            const std::size_t dot = path.rfind('.');
            if (path.empty())
                break;
            path = dot == std::string::npos ? "" : path.substr(0, dot);
        }
    }
    const auto depth = [](const std::string& path) {
        return path.empty() ? 0 : 1 + std::count(path.begin(), path.end(), '.');
    };
    std::stable_sort(paths.begin(), paths.end(), [&](const auto& a, const auto& b) { return depth(a) > depth(b); });
    for (const std::string& path : paths) {
        std::int64_t left = 0;
        std::vector<std::size_t> members;
        for (std::size_t i = 0; i < modules.size(); ++i) {
            const bool inside = path.empty() || modules[i].name == path || modules[i].name.rfind(path + ".", 0) == 0;
            if (inside && group[i] == kRoot) {
                left += modules[i].numel;
                members.push_back(i);
            }
        }
        if (left < minimum || members.empty())
            continue;
        for (const std::size_t i : members)
            group[i] = groups;
        ++groups;
    }
    return group;
}

bool holdsExperts(const LayerType& layer, const LeafModule& module)
{
    return std::any_of(module.parameters.begin(), module.parameters.end(), [&](int index) {
        return layer.parameters[static_cast<std::size_t>(index)].role == ParameterRole::Expert;
    });
}

} // namespace

UnitMap unitsOf(const Model& model, const UnitPolicy& policy)
{
    UnitMap map;
    map.types.push_back({"root", {}, 0, 0, -1, true});
    map.units.push_back({0, 0, static_cast<int>(model.layers.size()) - 1});
    map.unitOf.resize(model.layers.size());

    // Tied weights must lie in one unit, so a tied head keeps embedding and head together in the root.
    const bool separateHead = policy.separateHead && !model.architecture.tiedEmbedding;
    std::map<std::pair<int, int>, int> typeOfGroup; // (layer type, group) -> unit type
    std::vector<int> firstUnit{0};                  // of each unit type: the one whose parameters describe the type
    std::vector<bool> rootHas(model.layerTypes.size(), false);
    const auto append = [&](UnitType& type, const LayerType& layer, const LeafModule& module) {
        for (const int index : module.parameters) {
            const ParameterSpec& parameter = layer.parameters[static_cast<std::size_t>(index)];
            type.parameters.push_back(&parameter);
            const std::int64_t all = checkedMultiply(parameter.numel, parameter.repeat);
            type.numel = checkedAdd(type.numel, all);
            if (parameter.trainable)
                type.trainable = checkedAdd(type.trainable, all);
        }
    };
    int outerUnit = -1; // the unit of [final norm, head]
    for (std::size_t position = 0; position < model.layers.size(); ++position) {
        const int typeIndex = model.layers[position];
        const LayerType& layer = model.layer(position);
        const std::vector<LeafModule> modules = leafModules(layer);
        std::vector<int> group(modules.size(), kRoot);
        if (policy.wrap == WrapPolicy::Transformer && layer.kind == LayerKind::Block)
            for (std::size_t i = 0; i < modules.size(); ++i)
                group[i] = policy.separateExperts && holdsExperts(layer, modules[i]) ? 1 : 0;
        else if (policy.wrap == WrapPolicy::Size)
            group = wrapBySize(modules, policy.minNumParams);
        else if (separateHead && policy.wrap == WrapPolicy::Transformer)
            std::fill(group.begin(), group.end(), layer.kind == LayerKind::Embedding ? 0 : 1);

        std::vector<int>& unitOf = map.unitOf[position];
        unitOf.assign(modules.size(), 0);
        std::map<int, int> unitOfGroup;
        for (std::size_t i = 0; i < modules.size(); ++i) {
            if (group[i] == kRoot) {
                append(map.types[0], layer, modules[i]);
                continue;
            }
            const bool outer =
                layer.kind != LayerKind::Block && group[i] == 1 && policy.wrap == WrapPolicy::Transformer;
            if (outer && outerUnit >= 0) {
                unitOf[i] = outerUnit;
                map.units[static_cast<std::size_t>(outerUnit)].lastLayer = static_cast<int>(position);
                append(map.types[static_cast<std::size_t>(map.units[static_cast<std::size_t>(outerUnit)].type)], layer,
                       modules[i]);
                continue;
            }
            const auto key = std::make_pair(typeIndex, group[i]);
            const auto known = typeOfGroup.find(key);
            const bool newType = known == typeOfGroup.end();
            if (newType) {
                UnitType type;
                type.name = layer.kind == LayerKind::Block       ? "block"
                            : layer.kind == LayerKind::Embedding ? "embedding"
                                                                 : "final norm and head";
                type.experts = layer.kind == LayerKind::Block && policy.separateExperts && group[i] == 1;
                if (type.experts)
                    type.name = "experts";
                type.layerType = typeIndex;
                typeOfGroup[key] = static_cast<int>(map.types.size());
                map.types.push_back(type);
                firstUnit.push_back(static_cast<int>(map.units.size()));
            }
            const int unitType = typeOfGroup[key];
            if (unitOfGroup.count(group[i]) == 0) {
                unitOfGroup[group[i]] = static_cast<int>(map.units.size());
                map.units.push_back({unitType, static_cast<int>(position), static_cast<int>(position)});
                if (outer)
                    outerUnit = static_cast<int>(map.units.size()) - 1;
            }
            unitOf[i] = unitOfGroup[group[i]];
            if (unitOf[i] == firstUnit[static_cast<std::size_t>(unitType)])
                append(map.types[static_cast<std::size_t>(unitType)], layer, modules[i]);
        }
    }
    return map;
}

} // namespace shardwright
