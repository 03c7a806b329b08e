#include "executor/state/safetensors.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "executor/elements.hpp"

namespace shardwright {

namespace {

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMostHeader = 100'000'000; // safetensors/src/tensor.rs MAX_HEADER_SIZE

constexpr std::array<std::pair<DType, std::string_view>, 4> kDtypes{
    {{DType::Fp32, "F32"}, {DType::Fp16, "F16"}, {DType::Bf16, "BF16"}, {DType::Int64, "I64"}}};
/// The format's other dtypes with the bytes of an element: files may hold such tensors beside those that are read.
constexpr std::array<std::pair<std::string_view, std::int64_t>, 11> kOtherDtypes{{{"BOOL", 1},
                                                                                  {"U8", 1},
                                                                                  {"I8", 1},
                                                                                  {"F8_E5M2", 1},
                                                                                  {"F8_E4M3", 1},
                                                                                  {"I16", 2},
                                                                                  {"U16", 2},
                                                                                  {"I32", 4},
                                                                                  {"U32", 4},
                                                                                  {"F64", 8},
                                                                                  {"U64", 8}}};

std::string systemError()
{
    return std::strerror(errno);
}

std::int64_t lengthOf(std::string_view head)
{
    std::uint64_t length = 0;
    for (std::size_t i = kLengthBytes; i-- > 0;)
        length = length << 8 | static_cast<unsigned char>(head[i]);
    return length > static_cast<std::uint64_t>(kMostHeader) ? kMostHeader + 1 : static_cast<std::int64_t>(length);
}

/// A tensor's entry; findings where it is wrong.
void readTensor(const JsonCursor& entry, StoredTensor& tensor)
{
    if (!entry.expectObject())
        return;
    entry.rejectUnknownKeys({"dtype", "shape", "data_offsets"});
    if (const auto dtype = entry.require("dtype", "the tensor's dtype"))
        if (const auto text = dtype->asString()) {
            const auto known = std::find_if(kDtypes.begin(), kDtypes.end(),
                                            [&](const auto& candidate) { return candidate.second == *text; });
            const auto other = std::find_if(kOtherDtypes.begin(), kOtherDtypes.end(),
                                            [&](const auto& candidate) { return candidate.first == *text; });
            if (known != kDtypes.end())
                tensor.dtype = known->first;
            else if (other != kOtherDtypes.end())
                tensor.otherDtype = other->first;
            else
                dtype->complain("\"" + *text + "\" is no dtype of the format", "F32, F16, BF16, I64 ...");
        }
    if (const auto shape = entry.require("shape", "the tensor's shape"); shape && shape->expectArray())
        for (const JsonCursor& element : shape->elements())
            if (const auto dimension = element.asInteger(0, std::numeric_limits<std::int32_t>::max()))
                tensor.shape.push_back(*dimension);
    if (const auto offsets = entry.require("data_offsets", "where its bytes begin and end");
        offsets && offsets->expectArray()) {
        std::vector<std::int64_t> ends;
        for (const JsonCursor& element : offsets->elements())
            if (const auto value = element.asInteger(0, std::numeric_limits<std::int64_t>::max() / 2))
                ends.push_back(*value);
        if (ends.size() != 2 || ends[0] > ends[1]) {
            offsets->complain("not a range of bytes", "[begin, end]");
            return;
        }
        tensor.begin = ends[0];
        tensor.end = ends[1];
    }
}

void readMetadata(const JsonCursor& entry, std::map<std::string, std::string>& metadata)
{
    if (!entry.expectObject())
        return;
    for (const auto& [key, text] : entry.json().items()) {
        if (text.is_string())
            metadata[key] = text.get<std::string>();
        else
            entry.complain("metadata that is no text: " + key, "texts");
    }
}

bool fitsShape(const StoredTensor& tensor)
{
    try {
        for (const auto& [name, bytes] : kOtherDtypes)
            if (name == tensor.otherDtype)
                return checkedMultiply(tensor.elements(), bytes) == tensor.end - tensor.begin;
        return bytesOf(tensor.elements(), tensor.dtype).count() == tensor.end - tensor.begin;
    } catch (const NumberTooLarge&) {
        return false;
    }
}

} // namespace

std::int64_t StoredTensor::elements() const
{
    std::int64_t product = 1;
    for (const std::int64_t dimension : shape)
        product = checkedMultiply(product, dimension);
    return product;
}

std::string_view StoredTensor::dtypeName() const
{
    for (const auto& [known, word] : kDtypes)
        if (otherDtype.empty() && known == dtype)
            return word;
    return otherDtype;
}

const StoredTensor* SafetensorsHeader::find(const std::string& name) const
{
    const auto found =
        std::find_if(tensors.begin(), tensors.end(), [&](const StoredTensor& tensor) { return tensor.name == name; });
    return found == tensors.end() ? nullptr : &*found;
}

SafetensorsHeader safetensorsHeader(std::string_view head, std::int64_t fileBytes, const std::string& file)
{
    if (fileBytes < kLengthBytes || static_cast<std::int64_t>(head.size()) < kLengthBytes)
        throw InputError(file, "byte 0", fmt::format("{} bytes: too short for a safetensors file", fileBytes),
                         "8 bytes with the header's length, the header, the tensors");
    const std::int64_t length = lengthOf(head);
    if (length > kMostHeader || length > fileBytes - kLengthBytes ||
        length > static_cast<std::int64_t>(head.size()) - kLengthBytes)
        throw InputError(file, "byte 0",
                         fmt::format("the header's length leads beyond the file of {} bytes", fileBytes),
                         "a whole safetensors file");
    const Json json = parseJson(std::string(head.substr(kLengthBytes, static_cast<std::size_t>(length))), file);
    Findings findings(file);
    const JsonCursor cursor(json, findings);
    SafetensorsHeader header;
    if (cursor.expectObject())
        for (const auto& [name, value] : json.items()) {
            const JsonCursor entry(value, findings, "/" + name);
            if (name == "__metadata__") {
                readMetadata(entry, header.metadata);
                continue;
            }
            StoredTensor tensor;
            tensor.name = name;
            readTensor(entry, tensor);
            if (findings.empty() && !fitsShape(tensor))
                entry.complain("its bytes do not fit its dtype and shape", "data_offsets as long as the elements");
            header.tensors.push_back(std::move(tensor));
        }
    findings.throwIfAny();
    std::stable_sort(header.tensors.begin(), header.tensors.end(),
                     [](const StoredTensor& a, const StoredTensor& b) { return a.begin < b.begin; });
    std::int64_t at = 0;
    for (StoredTensor& tensor : header.tensors) {
        if (tensor.begin != at)
            findings.add("/" + tensor.name, fmt::format("its bytes begin at {}", tensor.begin),
                         fmt::format("{}, where those before it end: no gaps, no overlap", at));
        at = tensor.end;
        tensor.begin += kLengthBytes + length;
        tensor.end += kLengthBytes + length;
    }
    if (kLengthBytes + length + at != fileBytes)
        findings.add("end", fmt::format("the file has {} bytes", fileBytes),
                     fmt::format("{}, where the last tensor ends", kLengthBytes + length + at));
    findings.throwIfAny();
    return header;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : m_path(path)
{
    m_descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (m_descriptor < 0)
        throw InputError(path, "file", "cannot be opened: " + systemError(), "a readable safetensors file");
    try {
        struct stat status {};
        if (::fstat(m_descriptor, &status) != 0 || !S_ISREG(status.st_mode))
            throw InputError(path, "file", "is no regular file", "a safetensors file");
        const std::int64_t size = status.st_size;
        std::string head(static_cast<std::size_t>(std::min(size, kLengthBytes)), '\0');
        if (::pread(m_descriptor, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()))
            throw EnvironmentError(path + ": cannot be read: " + systemError());
        if (size >= kLengthBytes) {
            head.resize(static_cast<std::size_t>(std::min(size, kLengthBytes + std::min(lengthOf(head), size))));
            if (::pread(m_descriptor, head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()))
                throw EnvironmentError(path + ": cannot be read: " + systemError());
        }
        m_header = safetensorsHeader(head, size, path);
    } catch (...) {
        ::close(m_descriptor);
        throw;
    }
}

SafetensorsFile::~SafetensorsFile()
{
    ::close(m_descriptor);
}

namespace {

constexpr std::int64_t kAtOnce = 1 << 16; // bytes or elements

}

void SafetensorsFile::readBytes(std::int64_t begin, std::int64_t bytes, void* to) const
{
    std::int64_t got = 0;
    while (got < bytes) {
        const ssize_t more =
            ::pread(m_descriptor, static_cast<char*>(to) + got, static_cast<std::size_t>(bytes - got), begin + got);
        if (more < 0 && errno == EINTR)
            continue;
        if (more <= 0)
            throw EnvironmentError(fmt::format("{}: cannot be read at byte {}: {}", m_path, begin + got,
                                               more == 0 ? "it has become shorter" : systemError()));
        got += more;
    }
}

void SafetensorsFile::readRaw(const StoredTensor& tensor, std::int64_t first, std::int64_t count, void* to) const
{
    const std::int64_t size = bitsOf(tensor.dtype) / 8;
    readBytes(tensor.begin + first * size, count * size, to);
}

void SafetensorsFile::read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, float* to) const
{
    if (tensor.dtype == DType::Fp32)
        return readRaw(tensor, first, count, to);
    std::vector<char> raw;
    for (std::int64_t done = 0; done < count;) {
        const std::int64_t now = std::min(kAtOnce, count - done);
        raw.resize(static_cast<std::size_t>(now * bitsOf(tensor.dtype) / 8));
        readRaw(tensor, first + done, now, raw.data());
        convertElements(raw.data(), tensor.dtype, to + done, DType::Fp32, now);
        done += now;
    }
}

std::uint32_t SafetensorsFile::checksum() const
{
    std::uint32_t crc = 0;
    if (m_header.tensors.empty())
        return crc;
    std::vector<char> raw;
    const std::int64_t end = m_header.tensors.back().end;
    for (std::int64_t at = m_header.tensors.front().begin; at < end; at += kAtOnce) {
        raw.resize(static_cast<std::size_t>(std::min(kAtOnce, end - at)));
        readBytes(at, static_cast<std::int64_t>(raw.size()), raw.data());
        crc = crc32(crc, raw.data(), raw.size());
    }
    return crc;
}

std::uint32_t crc32(std::uint32_t before, const void* data, std::size_t bytes)
{
    static const std::array<std::uint32_t, 256> kTable = [] {
        constexpr std::uint32_t kPolynomial = 0xEDB88320; // ISO 3309, reflected
        std::array<std::uint32_t, 256> table{};
        for (std::uint32_t i = 0; i < table.size(); ++i) {
            table[i] = i;
            for (int bit = 0; bit < 8; ++bit)
                table[i] = (table[i] & 1U) != 0 ? table[i] >> 1U ^ kPolynomial : table[i] >> 1U;
        }
        return table;
    }();
    std::uint32_t crc = ~before;
    const auto* bytesOfIt = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < bytes; ++i)
        crc = kTable[(crc ^ bytesOfIt[i]) & 0xFFU] ^ crc >> 8U;
    return ~crc;
}

SafetensorsWriter::SafetensorsWriter(std::string path, const std::vector<Tensor>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : m_path(path), m_file(std::move(path))
{
    Json header = Json::object();
    if (!metadata.empty())
        header["__metadata__"] = metadata;
    for (const Tensor& tensor : tensors) {
        StoredTensor stored{tensor.name, tensor.dtype, tensor.shape, 0, 0, {}};
        const std::int64_t end = checkedAdd(m_expected, bytesOf(stored.elements(), tensor.dtype).count());
        Json entry = Json::object();
        for (const auto& [dtype, name] : kDtypes)
            if (dtype == tensor.dtype)
                entry["dtype"] = name;
        entry["shape"] = tensor.shape;
        entry["data_offsets"] = {m_expected, end};
        header[tensor.name] = std::move(entry);
        m_expected = end;
    }
    std::string text = header.dump();
    text.resize(static_cast<std::size_t>(roundUp(static_cast<std::int64_t>(text.size()), kLengthBytes)), ' ');
    std::array<char, kLengthBytes> length{};
    for (std::size_t i = 0; i < length.size(); ++i)
        length[i] = static_cast<char>(text.size() >> (8 * i) & 0xFFU);
    m_file.append(length.data(), kLengthBytes);
    m_file.append(text.data(), static_cast<std::int64_t>(text.size()));
}

void SafetensorsWriter::append(const void* data, std::int64_t bytes)
{
    m_file.append(data, bytes);
    m_checksum = crc32(m_checksum, data, static_cast<std::size_t>(bytes));
    m_written += bytes;
}

void SafetensorsWriter::commit()
{
    if (m_written != m_expected)
        throw std::logic_error(fmt::format("{}: {} of {} bytes written", m_path, m_written, m_expected));
    m_file.commit();
}

} // namespace shardwright
