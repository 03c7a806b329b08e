#include "core/layout.hpp"

#include <algorithm>

namespace shardwright {

namespace {

const NamedParameter& of(const std::vector<NamedParameter>& parameters, std::int32_t tensor)
{
    return parameters[static_cast<std::size_t>(tensor)];
}

/// Elements of one tensor in one part, padded.
std::int64_t pieceOf(const Layout& layout, const NamedParameter& parameter)
{
    if (layout.cut == Cut::EachRows) {
        const std::int64_t rows = parameter.shape.empty() ? 1 : parameter.shape.front();
        const std::int64_t rowLength = rows == 0 ? 0 : parameter.numel / rows;
        const std::int64_t padded = roundUp(rows, checkedMultiply(layout.parts, layout.multiple));
        return checkedMultiply(padded / layout.parts, rowLength);
    }
    return roundUp(parameter.numel, checkedMultiply(layout.parts, layout.multiple)) / layout.parts;
}

/// Flat's part of the layout.
Layout flatOf(const Layout& layout)
{
    Layout flat = layout;
    flat.cut = Cut::Flat;
    flat.allParts = false;
    flat.room = 0;
    return flat;
}

std::int64_t touchedElements(const Layout& layout, const std::vector<NamedParameter>& parameters, std::int64_t part)
{
    std::int64_t elements = 0;
    for (const Extent& extent : extentsOf(flatOf(layout), parameters, part))
        elements = checkedAdd(elements, of(parameters, extent.tensor).numel);
    return elements;
}

std::int64_t partElements(const Layout& layout, const std::vector<NamedParameter>& parameters)
{
    if (layout.cut == Cut::Touching) {
        std::int64_t most = 0;
        for (std::int64_t part = 0; part < layout.parts; ++part)
            most = std::max(most, touchedElements(layout, parameters, part));
        return most;
    }
    std::int64_t elements = 0;
    for (const std::int32_t tensor : layout.tensors)
        elements = layout.cut == Cut::Flat ? checkedAdd(roundUp(elements, layout.align), of(parameters, tensor).numel)
                                           : checkedAdd(elements, pieceOf(layout, of(parameters, tensor)));
    if (layout.cut == Cut::Flat)
        return roundUp(elements, checkedMultiply(layout.parts, layout.multiple)) / layout.parts;
    return elements;
}

void appendFlat(std::vector<Extent>& extents, const Layout& layout, const std::vector<NamedParameter>& parameters,
                std::int64_t part, std::int64_t at)
{
    const std::int64_t length = partElements(layout, parameters);
    const std::int64_t begin = part * length;
    std::int64_t offset = 0; // of the tensor in the flattened whole
    for (const std::int32_t tensor : layout.tensors) {
        const std::int64_t numel = of(parameters, tensor).numel;
        offset = roundUp(offset, layout.align);
        const std::int64_t from = std::max(offset, begin);
        const std::int64_t to = std::min(offset + numel, begin + length);
        if (from < to)
            extents.push_back({tensor, from - offset, to - from, at + from - begin});
        offset += numel;
    }
}

void appendTouching(std::vector<Extent>& extents, const Layout& layout, const std::vector<NamedParameter>& parameters,
                    std::int64_t part, std::int64_t at)
{
    for (const Extent& extent : extentsOf(flatOf(layout), parameters, part)) {
        const std::int64_t numel = of(parameters, extent.tensor).numel;
        extents.push_back({extent.tensor, 0, numel, at});
        at += numel;
    }
}

void appendEach(std::vector<Extent>& extents, const Layout& layout, const std::vector<NamedParameter>& parameters,
                std::int64_t part, std::int64_t at)
{
    for (const std::int32_t tensor : layout.tensors) {
        const NamedParameter& parameter = of(parameters, tensor);
        const std::int64_t piece = pieceOf(layout, parameter);
        const std::int64_t from = std::min(part * piece, parameter.numel);
        const std::int64_t to = std::min(from + piece, parameter.numel);
        if (from < to)
            extents.push_back({tensor, from, to - from, at});
        at += piece;
    }
}

void appendSwizzled(std::vector<Extent>& extents, const Layout& layout, const std::vector<NamedParameter>& parameters,
                    std::int64_t part, std::int64_t at)
{
    Layout pieces = layout;
    pieces.cut = Cut::EachFlat;
    pieces.parts = checkedMultiply(layout.parts, layout.multiple);
    pieces.multiple = 1;
    pieces.allParts = false;
    const std::int64_t length = partElements(pieces, parameters);
    std::int64_t largest = 0; // pieces beyond so many hold nothing
    for (const std::int32_t tensor : layout.tensors)
        largest = std::max(largest, of(parameters, tensor).numel);
    const std::int64_t end = std::min(pieces.parts, largest);
    for (std::int64_t piece = part; piece < end; piece += layout.parts, at += length)
        appendEach(extents, pieces, parameters, piece, at);
}

} // namespace

std::int64_t elementsOf(const Layout& layout, const std::vector<NamedParameter>& parameters)
{
    const std::int64_t part = partElements(layout, parameters);
    return std::max(layout.allParts ? checkedMultiply(part, layout.parts) : part, layout.room);
}

std::vector<Extent> extentsOf(const Layout& layout, const std::vector<NamedParameter>& parameters, std::int64_t part)
{
    std::vector<Extent> extents;
    const std::int64_t length = layout.allParts ? partElements(layout, parameters) : 0;
    const std::int64_t begin = layout.allParts ? 0 : part;
    const std::int64_t end = layout.allParts ? layout.parts : part + 1;
    for (std::int64_t each = begin; each < end; ++each) {
        const std::int64_t at = (each - begin) * length;
        if (layout.cut == Cut::Flat)
            appendFlat(extents, layout, parameters, each, at);
        else if (layout.cut == Cut::Touching)
            appendTouching(extents, layout, parameters, each, at);
        else if (layout.cut == Cut::Swizzled)
            appendSwizzled(extents, layout, parameters, each, at);
        else
            appendEach(extents, layout, parameters, each, at);
    }
    return extents;
}

TensorIndex::TensorIndex(const Model& model)
{
    std::int32_t next = 0;
    for (std::size_t layer = 0; layer < model.layers.size(); ++layer) {
        const LayerType& type = model.layer(layer);
        m_first.push_back(next);
        std::vector<std::int32_t> within;
        std::int32_t position = 0;
        for (const ParameterSpec& parameter : type.parameters) {
            within.push_back(position);
            position += static_cast<std::int32_t>(parameter.repeat);
        }
        m_within.push_back(std::move(within));
        m_count.push_back(position);
        next += position;
    }
}

std::vector<std::int32_t> TensorIndex::ofLayer(std::size_t layer) const
{
    std::vector<std::int32_t> tensors;
    for (std::int32_t i = 0; i < m_count[layer]; ++i)
        tensors.push_back(m_first[layer] + i);
    return tensors;
}

} // namespace shardwright
