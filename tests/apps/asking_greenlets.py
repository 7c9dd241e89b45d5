"""A WSGI app on greenlets, and by itself under the server of gevent or eventlet: `asking_greenlets.py gevent PORT`."""

import sys

if len(sys.argv) == 3 and sys.argv[1] in ("gevent", "eventlet"):
    __import__(sys.argv[1] + ".monkey" if sys.argv[1] == "gevent" else "eventlet")
    patch = sys.modules["gevent.monkey"].patch_all if sys.argv[1] == "gevent" else sys.modules["eventlet"].monkey_patch
    patch()

import asking


def spawned(call, model):
    if "eventlet" in sys.modules:
        import eventlet

        eventlet.spawn(call, model + "1").wait()
        pool = eventlet.GreenPool(2)
        pool.spawn_n(call, model + "2")
        pool.waitall()
    else:
        import gevent
        from gevent.pool import Pool

        gevent.spawn(call, model + "1").get()
        Pool(2).map(call, [model + "2"])


def app(environ, start_response):
    way = environ["PATH_INFO"][1:]
    model = f"{environ['HTTP_X_USER']}~{way}"
    if way == "stream":
        start_response("200 OK", [])
        return asking.stream(model)
    if way == "spawned":
        spawned(asking.by_urllib, model)
    else:
        asking.go(way, model)
    start_response("200 OK", [("Content-Length", "0")])
    return []


if __name__ == "__main__":
    if sys.argv[1] == "gevent":
        from gevent.pywsgi import WSGIServer

        WSGIServer(("127.0.0.1", int(sys.argv[2])), app).serve_forever()
    else:
        import eventlet.wsgi

        eventlet.wsgi.server(eventlet.listen(("127.0.0.1", int(sys.argv[2]))), app)
