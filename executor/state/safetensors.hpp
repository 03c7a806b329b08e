#pragma once

// The safetensors format (github.com/huggingface/safetensors): eight bytes with the length of a JSON header, the header
// with dtype, shape and place of every tensor, then the tensors' bytes.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.hpp"
#include "executor/state/durable_file.hpp"

namespace shardwright {

struct StoredTensor {
    std::string name;
    DType dtype = DType::Fp32; // fp32, fp16, bf16 or int64
    std::vector<std::int64_t> shape;
    std::int64_t begin = 0; // bytes, from the beginning of the file
    std::int64_t end = 0;
    std::string_view otherDtype; // the format's name of any other dtype, whose elements are not read; a literal
    std::int64_t elements() const;
    std::string_view dtypeName() const; // as the format calls it
};

struct SafetensorsHeader {
    std::vector<StoredTensor> tensors; // in the order of their bytes
    std::map<std::string, std::string> metadata;
    const StoredTensor* find(const std::string& name) const;
};

/// Reads a header from the first bytes of a file of `fileBytes`. InputError names the file and what is broken: too
/// short, a length beyond the file, no JSON, unknown dtypes, ranges that overlap, leave gaps or do not fit the shape.
SafetensorsHeader safetensorsHeader(std::string_view head, std::int64_t fileBytes, const std::string& file);

/// An open file. Reads are positional, from any thread.
class SafetensorsFile {
public:
    explicit SafetensorsFile(const std::string& path);
    ~SafetensorsFile();
    SafetensorsFile(const SafetensorsFile&) = delete;
    SafetensorsFile& operator=(const SafetensorsFile&) = delete;

    const SafetensorsHeader& header() const { return m_header; }
    const std::string& path() const { return m_path; }
    /// Elements [first, first + count) of a floating tensor as fp32. EnvironmentError where the disk fails.
    void read(const StoredTensor& tensor, std::int64_t first, std::int64_t count, float* to) const;
    /// The same elements as they are stored.
    void readRaw(const StoredTensor& tensor, std::int64_t first, std::int64_t count, void* to) const;
    /// CRC-32 of the tensors' bytes.
    std::uint32_t checksum() const;

private:
    void readBytes(std::int64_t begin, std::int64_t bytes, void* to) const;

    std::string m_path;
    int m_descriptor = -1;
    SafetensorsHeader m_header;
};

/// A file that is whole or not there, as DurableFile.
class SafetensorsWriter {
public:
    struct Tensor {
        std::string name;
        DType dtype = DType::Fp32;
        std::vector<std::int64_t> shape;
    };
    SafetensorsWriter(std::string path, const std::vector<Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});
    SafetensorsWriter(const SafetensorsWriter&) = delete;
    SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

    /// The next bytes of the tensors, one after another.
    void append(const void* data, std::int64_t bytes);
    /// All bytes are there: makes the file last and gives it its name.
    void commit();
    /// CRC-32 of the tensors' bytes so far.
    std::uint32_t checksum() const { return m_checksum; }

private:
    std::string m_path;
    DurableFile m_file;
    std::int64_t m_expected = 0; // bytes of all tensors
    std::int64_t m_written = 0;
    std::uint32_t m_checksum = 0;
};

/// CRC-32 (ISO 3309), continued from `before`.
std::uint32_t crc32(std::uint32_t before, const void* data, std::size_t bytes);

} // namespace shardwright
