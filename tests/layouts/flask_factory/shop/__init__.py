from flask import Blueprint, Flask

items = Blueprint("items", __name__, url_prefix="/items")


@items.get("/<int:item>")
def item(item):
    return {"item": item}


def create_app():
    app = Flask(__name__)
    app.register_blueprint(items)
    app.add_url_rule("/", view_func=lambda: "hello")
    return app
