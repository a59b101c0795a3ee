"""Downloads from servers that cut, corrupt, stall, redirect and lie."""
import hashlib
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from klue_course import data
from klue_course.runtime import InputError

BODY = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
FAST = {"tries": 4, "timeout": 0.4, "wait": 0.01}


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.ranges, self.paths = answer, [], []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, path="file.txt"):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.paths.append(self.path)
        self.server.ranges.append(self.headers.get("Range"))
        try:
            self.server.answer(self, len(self.server.paths))
        except (BrokenPipeError, ConnectionResetError):
            pass

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Type", headers.pop("kind", "text/plain"))
        if length is not False:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def start(self):
        asked = self.headers.get("Range")
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0

    def send_range(self, upto=None):
        "Answer as a good server does, but stop at `upto`."
        start = self.start()
        headers = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
        self.send(BODY[start:upto], 206 if start else 200, len(BODY) - start, **headers)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def good(handler, _):
    handler.send_range()


def cut_twice(handler, turn):
    handler.send_range({1: 30_000, 2: 60_000}.get(turn))


def stall_once(handler, turn):
    handler.send_range(40_000 if turn == 1 else None)
    if turn == 1:
        time.sleep(0.8)


def cut_then_no_range(handler, turn):
    handler.send(BODY[:50_000], length=len(BODY)) if turn == 1 else handler.send(BODY)


def corrupt_once(handler, turn):
    handler.send(BODY[::-1] if turn == 1 else BODY)


def busy_once(handler, turn):
    handler.send(b"busy", 503) if turn == 1 else handler.send_range()


def redirect(handler, _):
    if handler.path == "/file.txt":
        handler.send(b"", 302, Location="/elsewhere/file.txt")
    else:
        handler.send_range()


def hang_up_once(handler, turn):
    handler.connection.close() if turn == 1 else handler.send_range()


def chunked_cut_once(handler, turn):
    if turn > 1:
        return handler.send_range()
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"3e8\r\n" + BODY[:1000] + b"\r\n3e8\r\n" + BODY[1000:1500])
    handler.connection.close()


def wrong_range_once(handler, turn):
    if turn == 1:
        handler.send_range(20_000)
    elif turn == 2:
        handler.send(BODY[500:], 206, Content_Range=f"bytes 500-{len(BODY) - 1}/{len(BODY)}")
    else:
        handler.send_range()


SURVIVED = [good, cut_twice, stall_once, cut_then_no_range, corrupt_once, busy_once, redirect, hang_up_once, chunked_cut_once, wrong_range_once]


@pytest.mark.parametrize("answer", SURVIVED, ids=lambda answer: answer.__name__)
@pytest.mark.parametrize("sha256", [SHA256, ""], ids=["checksum", "no checksum"])
def test_survives(serve, tmp_path, answer, sha256):
    if answer is corrupt_once and not sha256:
        pytest.skip("without a checksum only verify can tell")
    path = data.download(serve(answer).url(), tmp_path / "new" / "file.txt", sha256, **FAST)
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_resumes_where_it_was_cut(serve, tmp_path):
    server = serve(cut_twice)
    data.download(server.url(), tmp_path / "file.txt", SHA256, **FAST)
    assert server.ranges == [None, "bytes=30000-", "bytes=60000-"]


def test_a_later_call_resumes_too(serve, tmp_path):
    server = serve(lambda handler, turn: handler.send_range(10_000 * turn if turn < 3 else None))
    with pytest.raises(InputError):
        data.download(server.url(), tmp_path / "file.txt", SHA256, **FAST | {"tries": 2})
    assert not (tmp_path / "file.txt").exists()
    data.download(server.url(), tmp_path / "file.txt", SHA256, **FAST)
    assert server.ranges == [None, "bytes=10000-", "bytes=20000-"]


def test_a_part_that_is_too_long_is_thrown_away(serve, tmp_path):
    (tmp_path / "file.txt.part").write_bytes(BODY + b"more")
    server = serve(lambda handler, turn: handler.send(b"", 416) if handler.start() >= len(BODY) else handler.send_range())
    assert data.download(server.url(), tmp_path / "file.txt", SHA256, **FAST).read_bytes() == BODY


def test_a_part_of_another_file_is_thrown_away(serve, tmp_path):
    (tmp_path / "file.txt.part").write_bytes(b"x" * 500)
    assert data.download(serve(good).url(), tmp_path / "file.txt", SHA256, **FAST).read_bytes() == BODY


def always_cut(handler, _):
    handler.send(BODY[:1000], length=len(BODY))


def always_corrupt(handler, _):
    handler.send(BODY[::-1])


def always_stalled(handler, _):
    time.sleep(0.8)


def loop(handler, turn):
    handler.send(b"", 302, Location=f"/{turn}")


def web_page(handler, _):
    handler.send(b"<html>log in</html>", kind="text/html; charset=utf-8")


def to_a_file(handler, _):
    handler.send(b"", 302, Location="file:///etc/hostname")


GIVEN_UP = {always_cut: "bytes", always_corrupt: "체크섬", always_stalled: "timed out", loop: "HTTP 302", web_page: "웹 문서", to_a_file: "HTTP 302",
            lambda handler, _: handler.send(b"", 404): "HTTP 404", lambda handler, _: handler.send(b"", 500): "HTTP 500"}


@pytest.mark.parametrize("answer", GIVEN_UP, ids=lambda answer: getattr(answer, "__name__", ""))
def test_gives_up_with_one_line_and_no_half_file(serve, tmp_path, answer):
    server = serve(answer)
    with pytest.raises(InputError) as caught:
        data.download(server.url(), tmp_path / "file.txt", SHA256, **FAST | {"tries": 2})
    assert "\n" not in str(caught.value) and GIVEN_UP[answer] in str(caught.value) and server.url() in str(caught.value)
    assert not (tmp_path / "file.txt").exists()


def test_a_missing_file_is_not_asked_for_twice(serve, tmp_path):
    server = serve(lambda handler, _: handler.send(b"", 404))
    with pytest.raises(InputError):
        data.download(server.url(), tmp_path / "file.txt", **FAST)
    assert len(server.paths) == 1


def test_nobody_there_and_nowhere_to_write(serve, tmp_path):
    with pytest.raises(InputError, match="2번 시도"):
        data.download("http://127.0.0.1:9/file.txt", tmp_path / "file.txt", **FAST | {"tries": 2})
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="폴더를 만들 수 없습니다"):
        data.download(serve(good).url(), tmp_path / "file" / "a.txt", **FAST)
    (tmp_path / "b.txt.part").mkdir()
    with pytest.raises(InputError, match="쓸 수 없습니다"):
        data.download(serve(good).url(), tmp_path / "b.txt", **FAST)


def test_fetch_lays_files_out_pinned_and_licensed(serve, tmp_path, capsys):
    table = "id\tdocument\tlabel\n1\t좋다\t1\n".encode()
    server = serve(lambda handler, _: handler.send(table))
    paths = data.fetch("nsmc", tmp_path, base=server.url("").rstrip("/"), **FAST)
    assert [str(path.relative_to(tmp_path)) for path in paths] == ["nsmc/ratings_train.txt", "nsmc/ratings_test.txt"]
    assert all(f"/e9t/nsmc/{data.SOURCES['nsmc'].commit}/" in path for path in server.paths)
    assert "CC0 1.0" in capsys.readouterr().err
    assert data.load("nsmc", tmp_path).num_rows == {"train": 1, "test": 1}
    paths[0].write_text("my own", encoding="utf-8")
    data.fetch("nsmc", tmp_path, base=server.url("").rstrip("/"), **FAST)
    assert paths[0].read_text(encoding="utf-8") == "my own" and len(server.paths) == 2     # what is there stays


def test_fetch_checks_the_official_checksum(serve, tmp_path):
    server = serve(lambda handler, _: handler.send(b'{"data": []}'))
    with pytest.raises(InputError, match="체크섬"):
        data.fetch("korquad", tmp_path, base=server.url("").rstrip("/"), **FAST)
    assert not (tmp_path / "korquad" / "KorQuAD_v1.0_dev.json").exists()
    (tmp_path / "korquad" / "KorQuAD_v1.0_dev.json").write_text("{}")
    with pytest.raises(InputError, match="이미 있는 파일"):
        data.fetch("korquad", tmp_path, base=server.url("").rstrip("/"), **FAST)
    with pytest.raises(InputError, match="받을 수 있는 파일이 없습니다"):
        data.fetch("webpages", tmp_path)


def test_every_address_is_pinned_to_a_commit():
    for name in data.DATASETS:
        for place, (address, _) in data.remote_files(name).items():
            assert data.SOURCES[name].commit in address and place.startswith(data.DATASETS[name].folder) and "*" not in place
