// Runs parts of tcompile_runtime.hpp for test_runtime_header.py: a file of jobs in, one answer each.
#include "tcompile_runtime.hpp"

#include <iostream>

using tcompile::json;

static std::vector<std::uint8_t> bytes(std::string const& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

static json answer(json const& job) {
  std::string const what = job.at("do");
  if (what == "sha256") return tcompile::sha256(job.at("path").get<std::string>());
  if (what == "prepare") {
    tcompile::Image image(job.at("width"), job.at("height"));
    image.pixels = bytes(job.at("pixels"));
    tcompile::Tensor const made =
        tcompile::Preprocessing(job.at("record"), "m")(image).to(job.at("dtype"));
    std::ofstream(job.at("out").get<std::string>(), std::ios::binary)
        .write(reinterpret_cast<char const*>(made.bytes.data()),
               static_cast<std::streamsize>(made.bytes.size()));
    return {{"dtype", made.dtype}, {"shape", made.shape}};
  }
  if (what == "cast") {  // float32 → dtype → float32
    tcompile::Tensor given("float32", {job.at("count")});
    given.bytes = bytes(job.at("in"));
    tcompile::Tensor const made = given.to(job.at("dtype"));
    std::vector<float> const back = made.floats();
    std::ofstream(job.at("out").get<std::string>(), std::ios::binary)
        .write(reinterpret_cast<char const*>(back.data()),
               static_cast<std::streamsize>(4 * back.size()));
    return nullptr;
  }
  if (what == "plugins") {
    tcompile::check_plugins(job.at("path").get<std::string>(), job.at("tensorrt"),
                            job.at("capability"));
    return nullptr;
  }
  if (what == "file") {
    tcompile::check_file(tcompile::read_artifact(job.at("path").get<std::string>()), job.at("name"));
    return nullptr;
  }
  if (what == "engine") {  // what is checked of one before TensorRT reads it; the lean runtime
    std::string const name = job.at("name");
    tcompile::Artifact const found = tcompile::read_artifact(job.at("path").get<std::string>());
    (void)tcompile::read_engine(found, name);
    auto const lean = tcompile::check_version(found, found.directory / name, job.at("title"),
                                              job.at("package"), job.at("installed"));
    tcompile::check_capability(found, job.at("capability"));
    return lean.string();
  }
  tcompile::Options options;
  options.runtime = job.value("runtime", "");
  tcompile::Model const model(job.at("path").get<std::string>(), options);
  return nullptr;
}

int main(int, char** arguments) {
  std::ifstream stream(arguments[1]);
  json answers = json::array();
  for (json const& job : json::parse(stream)) {
    try {
      answers.push_back({{"ok", answer(job)}});
    } catch (tcompile::Error const& error) {
      answers.push_back({{"error", error.what()}, {"code", error.exit_code}});
    }
  }
  std::cout << answers << "\n";
}
