#include "executor/state/checkpoint.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>

#include <fmt/format.h>

#include "core/json_cursor.hpp"
#include "executor/elements.hpp"
#include "executor/state/safetensors.hpp"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr const char* kKind = "shardwright-checkpoint";
constexpr const char* kManifest = "manifest.json";
constexpr const char* kConfig = "config.json";
constexpr std::string_view kStepPrefix = "step-";
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optimizer.safetensors";
constexpr std::int64_t kAtOnce = 1 << 18; // elements copied at a time
// Quantities as tensor names begin; parameters of a full checkpoint bear their Hugging Face names alone.
constexpr std::string_view kQuantities[] = {"parameters", "exp_avg", "exp_avg_sq", "worker_error", "server_error"};
constexpr std::size_t kFirstError = 3; // from here on what belongs to a number of ranks

std::size_t quantityOf(const StatePiece& piece)
{
    if (piece.quantity == Quantity::Parameters)
        return 0;
    return static_cast<std::size_t>(piece.moment) + (piece.quantity == Quantity::Error ? kFirstError : 1);
}

std::string pathIn(const std::string& folder, const std::string& name)
{
    return (fs::path(folder) / name).string();
}

std::string rankFile(int rank, int ranks)
{
    return fmt::format("rank-{:05}-of-{:05}.safetensors", rank, ranks);
}

/// "exp_avg:model.norm.weight:128": a piece that begins at element 128.
std::string pieceName(std::size_t quantity, const std::string& tensor, std::int64_t first)
{
    return fmt::format("{}:{}:{}", kQuantities[quantity], tensor, first);
}

void makeFolder(const std::string& folder)
{
    std::error_code error;
    fs::create_directories(folder, error);
    if (error)
        throw EnvironmentError(folder + ": cannot be made: " + error.message());
}

std::uint32_t checksumOf(const Json& json)
{
    const std::string text = json.dump();
    return crc32(0, text.data(), text.size());
}

void writeManifest(const std::string& folder, const CheckpointManifest& manifest)
{
    Json files = Json::array();
    for (const CheckpointFile& file : manifest.files) {
        Json entry = Json::object();
        entry["name"] = file.name;
        entry["bytes"] = file.bytes;
        entry["crc32"] = file.checksum;
        files.push_back(std::move(entry));
    }
    Json shapes = Json::object();
    for (const auto& [name, shape] : manifest.shapes)
        shapes[name] = shape;
    Json json = Json::object();
    json["layout"] = nameOf(manifest.kind);
    json["step"] = manifest.step;
    json["model"] = manifest.modelId;
    json["files"] = std::move(files);
    json["shapes"] = std::move(shapes);
    Json sealed = Json::object();
    sealed["kind"] = kKind;
    sealed["version"] = kCheckpointFormat;
    sealed["crc32"] = checksumOf(json);
    sealed["checkpoint"] = std::move(json);
    writeFileDurably(pathIn(folder, kManifest), sealed.dump(2) + "\n");
}

/// The step that a folder of that name holds; -1 of other names.
std::int64_t stepOf(const std::string& name)
{
    const std::string digits = name.rfind(kStepPrefix, 0) == 0 ? name.substr(kStepPrefix.size()) : "";
    constexpr std::size_t kMostDigits = 18; // fit 64 bits
    const bool number =
        !digits.empty() && digits.size() <= kMostDigits && digits.find_first_not_of("0123456789") == std::string::npos;
    return number ? std::stoll(digits) : -1;
}

/// Writes one rank's own pieces.
CheckpointFile writeRank(const std::string& folder, const std::vector<NamedParameter>& parameters,
                         const TrainingState& state, int rank, int ranks)
{
    std::vector<SafetensorsWriter::Tensor> tensors;
    for (const StatePiece& piece : state.pieces)
        if (piece.mine)
            tensors.push_back(
                {pieceName(quantityOf(piece), parameters[static_cast<std::size_t>(piece.tensor)].name, piece.first),
                 piece.values.dtype,
                 {piece.count}});
    CheckpointFile file{rankFile(rank, ranks), 0, 0};
    SafetensorsWriter writer(pathIn(folder, file.name), tensors);
    for (const StatePiece& piece : state.pieces)
        if (piece.mine)
            writer.append(piece.values.data, bytesOf(piece.count, piece.values.dtype).count());
    writer.commit();
    file.checksum = writer.checksum();
    file.bytes = static_cast<std::int64_t>(fs::file_size(pathIn(folder, file.name)));
    return file;
}

/// All pieces of a checkpoint, by quantity and tensor.
class PieceIndex {
public:
    PieceIndex(const std::string& folder, const CheckpointManifest& manifest) : m_folder(folder)
    {
        for (const CheckpointFile& listed : manifest.files) {
            const std::string path = pathIn(folder, listed.name);
            m_files.push_back(std::make_unique<SafetensorsFile>(path));
            const SafetensorsFile& file = *m_files.back();
            if (file.checksum() != listed.checksum)
                throw InputError(path, "contents", "the bytes are not those that were saved",
                                 fmt::format("CRC-32 {:08x}, as {} says", listed.checksum, kManifest));
            for (const StoredTensor& tensor : file.header().tensors)
                add(file, tensor, manifest.kind);
        }
        for (auto& [key, pieces] : m_pieces)
            std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.first < b.first; });
    }

    /// Elements [first, first + count) into `to`, cast where the dtypes differ.
    void read(std::size_t quantity, const std::string& tensor, std::int64_t first, std::int64_t count,
              const TensorView& to) const
    {
        std::int64_t reached = first;
        const auto found = m_pieces.find({quantity, tensor});
        if (found != m_pieces.end())
            for (const Piece& piece : found->second) {
                const std::int64_t end = piece.first + piece.tensor->elements();
                if (piece.first > reached || end <= reached)
                    continue;
                const std::int64_t now = std::min(end, first + count) - reached;
                if (now <= 0)
                    break;
                copy(piece, reached - piece.first, now, to, reached - first);
                reached += now;
            }
        if (reached != first + count)
            throw InputError(m_folder, fmt::format("{} of {}", kQuantities[quantity], tensor),
                             fmt::format("elements from {} on are in no file", reached),
                             "a checkpoint of the same model and kind of optimizer");
    }

    bool has(std::size_t quantity, const std::string& tensor) const { return m_pieces.count({quantity, tensor}) > 0; }
    /// Elements that are stored of a tensor, and its dtype.
    std::int64_t elements(std::size_t quantity, const std::string& tensor) const
    {
        std::int64_t end = 0;
        for (const Piece& piece : m_pieces.at({quantity, tensor}))
            end = std::max(end, piece.first + piece.tensor->elements());
        return end;
    }
    DType dtype(std::size_t quantity, const std::string& tensor) const
    {
        return m_pieces.at({quantity, tensor}).front().tensor->dtype;
    }
    /// Of what any number of ranks can go on from.
    std::vector<std::pair<std::size_t, std::string>> names() const
    {
        std::vector<std::pair<std::size_t, std::string>> all;
        for (const auto& [key, pieces] : m_pieces)
            if (key.first < kFirstError)
                all.push_back(key);
        return all;
    }

private:
    struct Piece {
        std::int64_t first = 0;
        const SafetensorsFile* file = nullptr;
        const StoredTensor* tensor = nullptr;
    };

    void add(const SafetensorsFile& file, const StoredTensor& tensor, CheckpointKind kind)
    {
        if (!tensor.otherDtype.empty())
            throw InputError(file.path(), "/" + tensor.name, fmt::format("has elements of {}", tensor.dtypeName()),
                             "F32 or BF16, as they are saved");
        const std::size_t colon = tensor.name.find(':');
        std::size_t quantity = 0;
        std::string name = tensor.name;
        std::int64_t first = 0;
        if (colon != std::string::npos) {
            const auto* known = std::find(std::begin(kQuantities), std::end(kQuantities), tensor.name.substr(0, colon));
            quantity = static_cast<std::size_t>(known - std::begin(kQuantities));
            name = tensor.name.substr(colon + 1);
            const std::size_t last = name.rfind(':');
            bool good = known != std::end(kQuantities);
            if (kind == CheckpointKind::Sharded) {
                good = good && last != std::string::npos && last + 1 < name.size() && name.size() - last < 19 &&
                       name.find_first_not_of("0123456789", last + 1) == std::string::npos;
                if (good) {
                    first = std::stoll(name.substr(last + 1));
                    name.resize(last);
                }
            }
            if (!good)
                throw InputError(file.path(), "/" + tensor.name, "is no piece of a checkpoint",
                                 "names like \"exp_avg:model.norm.weight:0\"");
        }
        m_pieces[{quantity, name}].push_back({first, &file, &tensor});
    }

    static void copy(const Piece& piece, std::int64_t from, std::int64_t count, const TensorView& to, std::int64_t at)
    {
        const std::int64_t size = bitsOf(to.dtype) / 8;
        char* const target = to.as<char>() + at * size;
        if (piece.tensor->dtype == to.dtype)
            return piece.file->readRaw(*piece.tensor, from, count, target);
        std::vector<float> wide(static_cast<std::size_t>(std::min(count, kAtOnce)));
        for (std::int64_t done = 0; done < count;) {
            const std::int64_t now = std::min(kAtOnce, count - done);
            piece.file->read(*piece.tensor, from + done, now, wide.data());
            convertElements(wide.data(), DType::Fp32, target + done * size, to.dtype, now);
            done += now;
        }
    }

    std::string m_folder;
    std::vector<std::unique_ptr<SafetensorsFile>> m_files;
    std::map<std::pair<std::size_t, std::string>, std::vector<Piece>> m_pieces;
};

/// Copies a range of one tensor from the index into a writer, as it is stored.
void appendRange(SafetensorsWriter& writer, const PieceIndex& index, std::size_t quantity, const std::string& tensor,
                 std::int64_t first, std::int64_t count)
{
    const DType dtype = index.dtype(quantity, tensor);
    std::vector<char> bytes(static_cast<std::size_t>(bytesOf(std::min(count, kAtOnce), dtype).count()));
    for (std::int64_t done = 0; done < count;) {
        const std::int64_t now = std::min(kAtOnce, count - done);
        index.read(quantity, tensor, first + done, now, {bytes.data(), now, dtype});
        writer.append(bytes.data(), bytesOf(now, dtype).count());
        done += now;
    }
}

CheckpointFile finish(SafetensorsWriter& writer, const std::string& folder, const std::string& name)
{
    writer.commit();
    return {name, static_cast<std::int64_t>(fs::file_size(pathIn(folder, name))), writer.checksum()};
}

CheckpointFile writeFull(const std::string& folder, const std::string& name, const PieceIndex& index,
                         const std::map<std::string, std::vector<std::int64_t>>& shapes, bool optimizer)
{
    std::vector<SafetensorsWriter::Tensor> tensors;
    std::vector<std::pair<std::size_t, std::string>> keys;
    for (const auto& [quantity, tensor] : index.names())
        if ((quantity > 0) == optimizer) {
            keys.emplace_back(quantity, tensor);
            tensors.push_back({optimizer ? fmt::format("{}:{}", kQuantities[quantity], tensor) : tensor,
                               index.dtype(quantity, tensor), shapes.at(tensor)});
        }
    SafetensorsWriter writer(pathIn(folder, name), tensors, {{"format", "pt"}});
    for (const auto& [quantity, tensor] : keys)
        appendRange(writer, index, quantity, tensor, 0, index.elements(quantity, tensor));
    return finish(writer, folder, name);
}

/// Every tensor cut evenly over the ranks.
CheckpointFile writeShard(const std::string& folder, const PieceIndex& index, int rank, int ranks)
{
    std::vector<SafetensorsWriter::Tensor> tensors;
    struct Range {
        std::size_t quantity;
        std::string tensor;
        std::int64_t first, count;
    };
    std::vector<Range> ranges;
    for (const auto& [quantity, tensor] : index.names()) {
        const std::int64_t elements = index.elements(quantity, tensor);
        const std::int64_t each = ceilDivide(elements, ranks);
        const std::int64_t first = std::min(elements, each * rank);
        const std::int64_t count = std::min(elements, first + each) - first;
        if (count == 0)
            continue;
        ranges.push_back({quantity, tensor, first, count});
        tensors.push_back({pieceName(quantity, tensor, first), index.dtype(quantity, tensor), {count}});
    }
    const std::string name = rankFile(rank, ranks);
    SafetensorsWriter writer(pathIn(folder, name), tensors);
    for (const Range& range : ranges)
        appendRange(writer, index, range.quantity, range.tensor, range.first, range.count);
    return finish(writer, folder, name);
}

} // namespace

std::string stepFolder(std::int64_t step)
{
    return fmt::format("{}{:06}", kStepPrefix, step);
}

void saveCheckpoint(const std::string& folder, const Model& model, const std::string& modelConfig,
                    const TrainingState& state, Transport& transport)
{
    makeFolder(folder);
    // An older checkpoint of this name stops being one before its files change.
    if (transport.rank() == 0) {
        fs::remove(pathIn(folder, kManifest));
        writeFileDurably(pathIn(folder, kConfig), modelConfig);
    }
    transport.sum(0);
    const std::vector<NamedParameter> parameters = listParameters(model);
    const CheckpointFile own = writeRank(folder, parameters, state, transport.rank(), transport.ranks());
    CheckpointManifest manifest{CheckpointKind::Sharded, state.step, model.id, {}, {}};
    for (const NamedParameter& parameter : parameters)
        manifest.shapes[parameter.name] = parameter.shape;
    for (int rank = 0; rank < transport.ranks(); ++rank) {
        // Both fit a double exactly.
        const bool mine = rank == transport.rank();
        const double bytes = transport.sum(mine ? static_cast<double>(own.bytes) : 0);
        const double checksum = transport.sum(mine ? static_cast<double>(own.checksum) : 0);
        manifest.files.push_back({rankFile(rank, transport.ranks()), static_cast<std::int64_t>(bytes),
                                  static_cast<std::uint32_t>(checksum)});
    }
    if (transport.rank() == 0)
        writeManifest(folder, manifest);
    transport.sum(0); // nobody goes on before it is a checkpoint
}

std::string checkpointFolder(const std::string& path)
{
    if (fs::exists(pathIn(path, kManifest)))
        return path;
    std::string newest;
    std::int64_t newestStep = -1;
    std::string incomplete;
    if (fs::is_directory(path))
        for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
            const std::string name = entry.path().filename().string();
            const std::int64_t step = stepOf(name);
            if (step < 0)
                continue;
            if (!fs::exists(entry.path() / kManifest)) {
                incomplete = entry.path().string();
            } else if (step > newestStep) {
                newest = entry.path().string();
                newestStep = step;
            }
        }
    if (newest.empty())
        throw InputError(path, "folder",
                         "no complete checkpoint is here" +
                             (incomplete.empty() ? "" : ": " + incomplete + " has no " + kManifest),
                         fmt::format("a folder with {}, or folders step-... with one each", kManifest));
    return newest;
}

CheckpointManifest readManifest(const std::string& folder)
{
    const std::string path = pathIn(folder, kManifest);
    const Json json = parseJson(readTextFile(path), path);
    if (!json.is_object() || json.value("kind", Json()) != kKind)
        throw InputError(path, "/kind", "this is no checkpoint's manifest", fmt::format("\"{}\"", kKind));
    if (json.value("version", Json()) != kCheckpointFormat)
        throw InputError(path, "/version", "a checkpoint of another format: " + json.value("version", Json()).dump(),
                         std::to_string(kCheckpointFormat));
    const auto body = json.find("checkpoint");
    if (body == json.end() || json.value("crc32", Json()) != checksumOf(*body))
        throw InputError(path, "/crc32", "the manifest was changed or cut after it was saved", "the file as it was");
    Findings findings(path);
    const JsonCursor cursor(*body, findings, "/checkpoint");
    CheckpointManifest manifest;
    cursor.read("layout", manifest.kind);
    cursor.read("step", manifest.step);
    cursor.read("model", manifest.modelId);
    if (const auto files = cursor.require("files", "the checkpoint's files"); files && files->expectArray())
        for (const JsonCursor& element : files->elements()) {
            CheckpointFile file;
            std::int64_t checksum = 0;
            element.read("name", file.name);
            element.read("bytes", file.bytes);
            element.read("crc32", checksum, 0, 0xFFFFFFFF);
            file.checksum = static_cast<std::uint32_t>(checksum);
            std::error_code error;
            const auto size = fs::file_size(pathIn(folder, file.name), error);
            if (file.name.empty() || fs::path(file.name).has_parent_path())
                element.complain("\"" + file.name + "\" is no file of this folder", "a file's name");
            else if (error)
                findings.add(element.pointer(), pathIn(folder, file.name) + " is missing", "the file as it was saved");
            else if (static_cast<std::int64_t>(size) != file.bytes)
                findings.add(element.pointer(), fmt::format("{} has {} bytes", pathIn(folder, file.name), size),
                             fmt::format("{}, as it was saved", file.bytes));
            manifest.files.push_back(std::move(file));
        }
    if (const auto shapes = cursor.require("shapes", "the shapes of the model's tensors");
        shapes && shapes->expectObject())
        for (const auto& [name, value] : shapes->json().items()) {
            const JsonCursor shape(value, findings, shapes->pointer() + "/" + name);
            if (!shape.expectArray())
                continue;
            for (const JsonCursor& element : shape.elements())
                if (const auto dimension = element.asInteger(0, std::numeric_limits<std::int32_t>::max()))
                    manifest.shapes[name].push_back(*dimension);
        }
    findings.throwIfAny();
    return manifest;
}

void loadCheckpoint(const std::string& folder, const Model& model, TrainingState& state)
{
    const CheckpointManifest manifest = readManifest(folder);
    const PieceIndex index(folder, manifest);
    const std::vector<NamedParameter> parameters = listParameters(model);
    Findings findings(folder);
    for (const NamedParameter& parameter : parameters)
        if (!index.has(0, parameter.name))
            findings.add(parameter.name, "is not in the checkpoint", "a checkpoint of " + model.id);
        else if (index.elements(0, parameter.name) != parameter.numel)
            findings.add(parameter.name, fmt::format("has {} elements", index.elements(0, parameter.name)),
                         fmt::format("{}, as {} has", parameter.numel, model.id));
    findings.throwIfAny();
    for (StatePiece& piece : state.pieces) {
        const std::size_t quantity = quantityOf(piece);
        const std::string& tensor = parameters[static_cast<std::size_t>(piece.tensor)].name;
        const bool fits = quantity < kFirstError || (index.has(quantity, tensor) &&
                                                     index.elements(quantity, tensor) == piece.count * piece.ranks);
        if (fits)
            index.read(quantity, tensor, piece.first, piece.count, piece.values);
        else
            std::memset(piece.values.data, 0,
                        static_cast<std::size_t>(bytesOf(piece.count, piece.values.dtype).count()));
    }
    state.step = manifest.step;
}

void convertCheckpoint(const std::string& from, const std::string& to, CheckpointKind kind, int ranks)
{
    if (fs::exists(to) && fs::exists(from) && fs::equivalent(from, to))
        throw InputError(to, "folder", "is the checkpoint that is converted", "another folder");
    const CheckpointManifest source = readManifest(from);
    const PieceIndex index(from, source);
    for (const auto& [quantity, tensor] : index.names()) {
        const auto shape = source.shapes.find(tensor);
        std::int64_t elements = 1;
        if (shape != source.shapes.end())
            for (const std::int64_t dimension : shape->second)
                elements = checkedMultiply(elements, dimension);
        if (shape == source.shapes.end() || elements != index.elements(quantity, tensor))
            throw InputError(pathIn(from, kManifest), "/shapes/" + tensor, "does not fit the elements that were saved",
                             fmt::format("a shape of {} elements", index.elements(quantity, tensor)));
    }
    makeFolder(to);
    fs::remove(pathIn(to, kManifest));
    writeFileDurably(pathIn(to, kConfig), readTextFile(pathIn(from, kConfig)));
    CheckpointManifest manifest{kind, source.step, source.modelId, {}, source.shapes};
    if (kind == CheckpointKind::Full) {
        manifest.files.push_back(writeFull(to, kModelFile, index, source.shapes, false));
        manifest.files.push_back(writeFull(to, kOptimizerFile, index, source.shapes, true));
    } else {
        for (int rank = 0; rank < ranks; ++rank)
            manifest.files.push_back(writeShard(to, index, rank, ranks));
    }
    writeManifest(to, manifest);
}

} // namespace shardwright
